"""Reading a saved posterior."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_scale import inference_data, storage
from pyro_scale.checks import check_path
from pyro_scale.compile import CompiledModel, compile_model
from pyro_scale.contents import MOMENT_GROUPS
from pyro_scale.data import Model, names_of
from pyro_scale.errors import DataError, FileFormatError, ModelError
from pyro_scale.groups import data_groups
from pyro_scale.health import Check
from pyro_scale.moments import Moments
from pyro_scale.plates import prepare
from pyro_scale.posterior import Posterior
from pyro_scale.standing_priors import with_prior
from pyro_scale.stored_gaussians import named, put_together
from pyro_scale.types import Gaussian

ROUNDING = 64
"""Observations that the model computes may differ by so many units of rounding from one machine to another."""


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
        ArgumentError: the path is no path.
        FileNotFoundError: there is no such file.
        FileFormatError: it was not written by `Posterior.save`.
        ModelError: the model has other latent sites than that of the run.
        DataError: the data have another number of rows, or other values.
    """
    idata = storage.read(check_path(path))
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
        # before the model is compiled, which would blame the batch_size of the run for rows that are missing
        _check_same_length(prepare(model, data, constants, dtype=dtype).num_data, record["settings"]["num_data"])
        compiled = compile_model(model, data, constants=constants, batch_size=size, dtype=dtype)
        _check_same_model(compiled, record)
        _check_same_data(compiled, idata)
        if (prior := _gaussian(idata, record.get("prior"), "prior_approximation")) is not None:
            compiled = with_prior(compiled, prior)
    stats = inference_data.dataset(idata, "sample_stats")
    return Posterior(
        draws,
        moments=_moments(idata, record),
        sample_stats={str(name): torch.tensor(stats[name].values) for name in stats.data_vars},
        num_steps=record["num_steps"],
        step_size=record["step_size"],
        timing=record["timing"],
        settings=record["settings"],
        compiled=compiled,
        checks=[Check(*fields) for fields in record.get("checks", [])],
        approximation=_gaussian(idata, record.get("approximation"), "approximation"),
        trace=_trace(idata),
        idata=idata,
    )


def _gaussian(idata: Any, record: Any, group: str) -> Gaussian | None:
    """What a group holds whose structure is in the record; None without a record."""
    if record is None:
        return None
    arrays = inference_data.dataset(idata, group)
    variables = inference_data.variable_names(named(record))
    found: Gaussian = put_together(record, {name: arrays[variable].values for name, variable in variables.items()})
    return found


def _trace(idata: Any) -> torch.Tensor | None:
    if "trace" not in inference_data.group_names(idata):
        return None
    return torch.tensor(inference_data.dataset(idata, "trace")["objective"].values)


def _moments(idata: Any, record: Mapping[str, Any]) -> dict[str, Moments]:
    names = record.get("moments", {})
    if not names:
        return {}
    mean, sd = (inference_data.dataset(idata, group) for group in MOMENT_GROUPS)

    def field(group: Any, variable: str, dtype: str) -> torch.Tensor:
        return torch.tensor(group[variable].values[:, 0]).to(getattr(torch, dtype))

    return {site: Moments(field(mean, *where), field(sd, *where)) for site, where in names.items()}


def _check_same_length(got: int, wanted: int) -> None:
    if got != wanted:
        raise DataError(f"data has {got} rows and the run had {wanted}. Pass the data of the run.")


def _check_same_model(compiled: CompiledModel, record: Mapping[str, Any]) -> None:
    theirs = {name: tuple(shape) for name, shape in record["latent"].items()}
    ours = {name: tuple(shape) for name, shape in compiled.latent.items()}
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise ModelError(
                f"The model is not that of the run: latent site '{name}' has shape {ours.get(name, 'none')}, and in "
                f"the file {theirs.get(name, 'none')} (unconstrained). Pass the model and constants of the run."
            )


def _check_same_data(compiled: CompiledModel, idata: Any) -> None:
    stored = set(inference_data.group_names(idata))  # a user may have taken the data out of a large file
    for group, ours in data_groups(compiled).items():
        if group not in stored:
            continue
        theirs = inference_data.dataset(idata, group)
        names = inference_data.variable_names(ours)
        for name in ours:
            if names[name] not in theirs:
                raise DataError(
                    f"'{name}' was passed, and {group} of the file has only {names_of([str(v) for v in theirs])}. Pass "
                    "the model, data and constants of the run."
                )
            _check_same_values(name, ours[name], theirs[names[name]].values)
        if missing := sorted({str(name) for name in theirs.data_vars} - set(names.values())):
            raise DataError(
                f"'{missing[0]}' is in {group} of the file and was not passed. Pass the model, data and constants of "
                "the run."
            )


def _check_same_values(name: str, ours: NDArray[Any], theirs: NDArray[Any]) -> None:
    remedy = "Pass the data and constants of the run, rows in the same order."
    if ours.shape != theirs.shape:
        raise DataError(f"'{name}' has shape {ours.shape}, and in the file {theirs.shape}. {remedy}")
    different = ours != theirs
    if ours.dtype.kind == "f" and theirs.dtype.kind == "f":
        relative = ROUNDING * float(np.finfo(ours.dtype).eps)
        largest = float(np.abs(theirs, where=np.isfinite(theirs), out=np.zeros_like(theirs)).max(initial=0))
        different &= ~np.isclose(ours, theirs, rtol=0, atol=relative * largest, equal_nan=True)
    if not different.any():
        return
    first = tuple(np.argwhere(different)[0])
    where = f" in row {first[0]}" if first else ""
    raise DataError(
        f"'{name}' has other values than in the run: {ours[first]}{where}, and in the file {theirs[first]}. {remedy}"
    )
