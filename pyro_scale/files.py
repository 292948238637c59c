"""Reading a saved posterior."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pyro_scale import inference_data
from pyro_scale.compile import compile_model
from pyro_scale.data import Model, names_of
from pyro_scale.errors import FileFormatError, ModelError
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
        ModelError: the model has other latent sites than the file.
    """
    idata = inference_data.read(Path(path))
    group = inference_data.dataset(idata, "posterior")
    if "pyro_scale" not in group.attrs:
        raise FileFormatError(f"{path} has no record of a run by pyro_scale. Open it with arviz.from_netcdf instead.")
    record = json.loads(group.attrs["pyro_scale"])
    draws = {}
    for name, dtype in record["dtypes"].items():
        draws[name] = torch.tensor(group[name.replace("/", ":")].values).to(getattr(torch, dtype))
    stats = inference_data.dataset(idata, "sample_stats")
    compiled = None
    if model is not None:
        size = record["settings"].get("batch_size")
        compiled = compile_model(model, data, constants=constants, batch_size=size)
        if unknown := sorted(compiled.latent.keys() - draws.keys()):
            raise ModelError(
                f"The model has a latent site '{unknown[0]}' and the file has draws of {names_of(list(draws))}. Pass "
                "the model that the file was made with."
            )
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
