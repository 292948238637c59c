"""What a summary and a report go by: draws, statistics and record of a run, as arrays, from memory or a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_scale import inference_data, storage
from pyro_scale.errors import ArgumentError, FileFormatError
from pyro_scale.health import Check, Health, of_mixing
from pyro_scale.values import chosen, labels

from .summaries import DrawnAs, table_of

if TYPE_CHECKING:
    from pyro_scale.posterior import Posterior
    from pyro_scale.prediction import Prediction

PREDICTIVE_DRAWS = 400
PREDICTIVE_NUMBERS = 2**24
"""At most so many draws of all rows together are predicted."""

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Evidence:
    """A run, as far as it is known.

    Attributes:
        names: of the values that are looked at, at least one of every site.
        values: their draws, `(num_chains, num_samples, values)`.
        num_values: of all sites together.
        table: the summary, a row a value.
        health: the verdict.
        stats: ArviZ name -> `(num_chains, num_samples, ...)`.
        record: settings, timing, sizes: what a file holds beside the arrays.
        attributes: of the file: versions and the date; none for a run in memory.
        posterior: with the model, if it is in memory.
        reference: another posterior of the same model to compare with.
        trace: objective of every step of a fit, `(num_fits, num_steps)`, whose draws are no chains; None for chains.
        drawn_as: in chains, independently of a normal that was fitted, or as fits by themselves.
    """

    names: list[str]
    values: NDArray[np.float64]
    num_values: int
    table: pd.DataFrame
    health: Health
    stats: dict[str, NDArray[Any]]
    record: dict[str, Any]
    attributes: dict[str, Any] = field(default_factory=dict)
    posterior: Posterior | None = None
    reference: Posterior | None = None
    trace: NDArray[Any] | None = None
    drawn_as: DrawnAs = "chains"

    @property
    def settings(self) -> dict[str, Any]:
        """Of the run."""
        found: dict[str, Any] = self.record.get("settings", {})
        return found

    @cached_property
    def prediction(self) -> Prediction:
        """About `PREDICTIVE_DRAWS` draws of the observations of the fit: of some draws, or of few several each."""
        assert self.posterior is not None
        num_chains, num_samples, _ = self.values.shape
        rows = max(1, int(self.settings.get("num_data") or 1))
        most = max(1, min(PREDICTIVE_DRAWS // num_chains, PREDICTIVE_NUMBERS // (rows * num_chains)))
        repeated = copy(self.posterior)
        times = max(1, most // num_samples)
        repeated.draws = {name: value.repeat_interleave(times, 1) for name, value in self.posterior.draws.items()}
        return repeated.predict(num_samples=min(most, num_samples * times))

    def draws(self, name: str) -> NDArray[np.float64]:
        """Of one value, `(num_chains, num_samples)`."""
        found: NDArray[np.float64] = self.values[..., self.names.index(name)]
        return found

    def worst_first(self, most: int) -> list[str]:
        """Names of at most so many values, those first whose draws are least to be trusted."""
        table = self.table
        trouble = np.fmax(table["r_hat"] - 1, 0) * 100 + 1e3 / np.fmax(table["ess_bulk"], 1e-9)
        trouble[table["mean"].isna()] = np.inf
        order = np.argsort(-trouble.fillna(0).to_numpy(), kind="stable")
        return [self.names[i] for i in order[:most]]


def gather(posterior: Posterior | str | Path, reference: Posterior | None = None) -> Evidence:
    """All that is known of a posterior in memory, or of one that `Posterior.save` wrote."""
    if isinstance(posterior, (str, Path)):
        return _from_file(Path(posterior), reference)
    if not all(hasattr(posterior, name) for name in ("draws", "sample_stats", "trace")):
        raise ArgumentError(
            f"posterior is a {type(posterior).__name__}; it must be a Posterior, as infer returns, or the path of a "
            "saved one, as 'run.nc'."
        )
    from pyro_scale import contents  # of files: not without torch

    names, values, number = _looked_at(_as_arrays(posterior.draws))
    try:
        health = Health([*of_finite(names, values), *posterior.health.checks], posterior.health.left_out)
    except Exception as error:  # a model that fails at its own draws is no reason to see nothing
        health = Health(posterior.checks, [f"Most checks could not be made: {_first_line(error)}."])
    record = contents.record(posterior)
    drawn_as = _drawn_as(record, posterior.trace)
    return Evidence(
        names,
        values,
        number,
        table_of(names, values, drawn_as),
        health,
        dict(_as_arrays(posterior.sample_stats)),
        record,
        posterior=posterior,
        reference=reference,
        trace=None if posterior.trace is None else posterior.trace.detach().cpu().numpy(),
        drawn_as=drawn_as,
    )


def _drawn_as(record: Mapping[str, Any], trace: object) -> DrawnAs:
    if trace is None:
        return "chains"
    return "fits" if record.get("approximation") is None else "independent"


def _from_file(path: Path, reference: Posterior | None) -> Evidence:
    idata = storage.read(path)
    group = inference_data.dataset(idata, "posterior")
    if "pyro_scale" not in group.attrs:
        raise FileFormatError(f"{path} has no record of a run by pyro_scale, and so nothing to report on but draws.")
    record = json.loads(group.attrs["pyro_scale"])
    arrays = {site: group[variable].values for site, variable in record["variables"].items() if variable in group}
    names, values, number = _looked_at(arrays)
    stats: dict[str, NDArray[Any]] = {}
    if "sample_stats" in inference_data.group_names(idata):
        stored = inference_data.dataset(idata, "sample_stats")
        stats = {str(name): variable.values for name, variable in stored.data_vars.items()}
    trace = None
    if "trace" in inference_data.group_names(idata):
        trace = inference_data.dataset(idata, "trace")["objective"].values
    drawn_as = _drawn_as(record, trace)
    table = table_of(names, values, drawn_as)
    if trace is None:
        health = _health_of(names, values, table, arrays, record)
    else:
        health = _health_of_fit(names, values, record)
    return Evidence(
        names,
        values,
        number,
        table,
        health,
        stats,
        record,
        attributes={str(name): value for name, value in group.attrs.items()},
        reference=reference,
        trace=trace,
        drawn_as=drawn_as,
    )


def _health_of_fit(names: list[str], values: NDArray[Any], record: Mapping[str, Any]) -> Health:
    """What is known of a fit, whose draws are independent: what it could check itself."""
    reason = record.get("settings", {}).get("left_out")
    left_out = [f"Whether the gradient is 0 is not checked: {reason}."] if reason else []
    return Health([*of_finite(names, values), *(Check(*fields) for fields in record.get("checks", []))], left_out)


def _health_of(
    names: list[str], values: NDArray[Any], table: pd.DataFrame, arrays: Arrays, record: Mapping[str, Any]
) -> Health:
    """What draws and record tell; as `Posterior.verdict`, whose numbers are the same."""
    settings = record.get("settings", {})
    num_chains = len(next(iter(arrays.values()), ()))
    moving = table["sd"] > 0
    bulk, tail = (table[name].where(moving).to_numpy() for name in ("ess_bulk", "ess_tail"))
    modes = settings.get("tuning", {}).get("modes", 1)
    checks = of_finite(names, values)
    checks += of_mixing(names, table["r_hat"].to_numpy(), bulk, tail, num_chains=num_chains, num_modes=modes)
    left_out = []
    if num_chains == 1:
        left_out.append("R-hat is not checked: it takes two chains or more.")
    if groups := settings.get("num_superchains"):
        try:
            import torch

            from pyro_scale.mixing import of_superchains

            checks += of_superchains({name: torch.from_numpy(value) for name, value in arrays.items()}, groups)
        except ImportError:
            left_out.append("Nested R-hat is not checked: it takes torch.")
    checks += [Check(*fields) for fields in record.get("checks", [])]
    left_out.append("Temperatures are not checked: they take gradients, and a file has no model.")
    return Health(checks, left_out)


def draws_by_name(posterior: Posterior) -> dict[str, NDArray[np.float64]]:
    """Draws `(num_chains, num_samples)` of the values that are looked at."""
    names, values, _ = _looked_at(_as_arrays(posterior.draws))
    return {name: values[..., i] for i, name in enumerate(names)}


def of_finite(names: list[str], values: NDArray[Any]) -> list[Check]:
    """A failed check where draws are NaN or infinite."""
    number = (~np.isfinite(values)).sum((0, 1))
    if not number.any():
        return []
    worst = int(number.argmax())
    remedy = "they say nothing of the posterior. Lower step_size, and check that the model is finite near its draws."
    return [Check("draws that are not finite", int(number.sum()), 0, False, names[worst], remedy)]


def _looked_at(arrays: Arrays) -> tuple[list[str], NDArray[np.float64], int]:
    """Names, draws `(num_chains, num_samples, values)` and the number of values in all."""
    if not arrays:
        raise ArgumentError("The posterior has no draws of any site, so that there is nothing to report on.")
    shapes = {site: array.shape[2:] for site, array in arrays.items()}
    names: list[str] = []
    columns = []
    for site, places in chosen(shapes).items():
        flat = arrays[site].reshape(*arrays[site].shape[:2], -1)
        columns.append(flat[..., places].astype(np.float64))
        names += labels(site, shapes[site], places)
    total = sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes.values())
    return names, np.concatenate(columns, -1), total


def _as_arrays(tensors: Mapping[str, Any]) -> Arrays:
    from pyro_scale.groups import arrays  # who has tensors has torch

    return arrays(tensors)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
