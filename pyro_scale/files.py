"""Reading a saved posterior."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pyro_scale import inference_data
from pyro_scale.compile import CompiledModel, compile_model
from pyro_scale.data import Model
from pyro_scale.errors import DataError, FileFormatError, ModelError
from pyro_scale.posterior import Posterior


def load(
    path: str | Path, model: Model | None = None, data: Any = None, *, constants: Mapping[str, Any] | None = None
) -> Posterior:
    """Reads what `Posterior.save` wrote. Files hold arrays and JSON: nothing in them is executed.

    Args:
        path: a `.nc` or `.zarr` file.
        model: the model of the run, for `predict` and `log_likelihood`; None loads draws and `idata` only.
        data: the data of the run, with `model`.
        constants: the constants of the run, with `model`.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: it was not written by `Posterior.save`.
        ModelError: the model has other latent sites than that of the run.
        DataError: the data have another number of rows.
    """
    idata = inference_data.read(Path(path))
    group = inference_data.dataset(idata, "posterior")
    if "pyro_scale" not in group.attrs:
        raise FileFormatError(f"{path} has no record of a run by pyro_scale. Open it with arviz.from_netcdf instead.")
    record = json.loads(group.attrs["pyro_scale"])
    draws = {}
    for name, dtype in record["dtypes"].items():
        draws[name] = torch.tensor(group[record["variables"][name]].values).to(getattr(torch, dtype))
    compiled = None
    if model is not None:
        size, dtype = record["settings"]["batch_size"], getattr(torch, record["settings"]["dtype"])
        compiled = compile_model(model, data, constants=constants, batch_size=size, dtype=dtype)
        _check_same_model(compiled, record)
    stats = inference_data.dataset(idata, "sample_stats")
    return Posterior(
        draws,
        sample_stats={str(name): torch.tensor(stats[name].values) for name in stats.data_vars},
        num_steps=record["num_steps"],
        step_size=record["step_size"],
        timing=record["timing"],
        settings=record["settings"],
        compiled=compiled,
        idata=idata,
    )


def _check_same_model(compiled: CompiledModel, record: Mapping[str, Any]) -> None:
    rows = record["settings"]["num_data"]
    if compiled.num_data != rows:
        raise DataError(f"data has {compiled.num_data} rows and the run had {rows}. Pass the data of the run.")
    theirs = {name: tuple(shape) for name, shape in record["latent"].items()}
    ours = {name: tuple(shape) for name, shape in compiled.latent.items()}
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise ModelError(
                f"The model is not that of the run: latent site '{name}' has shape {ours.get(name, 'none')}, and in "
                f"the file {theirs.get(name, 'none')} (unconstrained). Pass the model and constants of the run."
            )
