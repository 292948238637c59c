"""Parameters from the prior and data from the model given them, at the covariates of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_scale.compile import CompiledModel, compile_model
from pyro_scale.data import Model, names_of
from pyro_scale.errors import ArgumentError, ModelError
from pyro_scale.handlers import FromValues, Run, run, seeded
from pyro_scale.loaders import INSTEAD, Streamed
from pyro_scale.records import PyroSite, is_data, is_factor, log_prob, same, user_scale


class Simulated(NamedTuple):
    """One draw of everything.

    Attributes:
        values: latent and deterministic sites, constrained.
        data: argument -> rows, the observed ones drawn anew.
        compiled: the model on these rows.
    """

    values: dict[str, Tensor]
    data: dict[str, Tensor]
    compiled: CompiledModel


class Simulator:
    """Draws from the joint distribution of a Pyro model.

    Args:
        model: the Pyro model.
        data: as `compile_model` takes them; what they observe is drawn anew, the other columns stay.
        constants, placing: as `compile_model` takes them; `placing` are device and dtype.

    Raises:
        ArgumentError, DataError, ModelError: as `compile_model`; or there is nothing that could be drawn from.
    """

    def __init__(self, model: Model, data: Any, constants: Mapping[str, Any] | None = None, **placing: Any) -> None:
        self.compiled = compile_model(model, data, constants=constants, **placing)
        self.arguments = self._observed_arguments()
        first, found = self._run(0)
        self._check_same(first, found)

    def draw(self, seed: int) -> Simulated:
        """Everything, anew."""
        simulated, _ = self._run(seed)
        return simulated

    def _run(self, seed: int) -> tuple[Simulated, Run]:
        compiled = self.compiled
        try:
            with torch.no_grad(), seeded(seed, compiled.data.device):
                found = run(compiled.model, compiled.data, compiled.data.rows, FromValues({}), sample_observed=True)
        except NotImplementedError as error:
            raise ArgumentError(
                f"The prior cannot be drawn from: {error} An improper prior has no draws. Give every latent site a "
                "distribution that can be sampled, as a wide Normal."
            ) from error
        values = {name: found.sites[name]["value"] for name in compiled.drawn}
        columns = dict(compiled.data.columns)
        for name, argument in self.arguments.items():
            columns[argument] = self._as_column(name, found.sites[name]["value"], columns[argument])
        data = compiled.data
        if data.plate is None:
            data = replace(data, rows=columns)
        else:
            data = replace(data, constants={**data.constants, **columns})
        return Simulated(values, columns, compiled.on(data)), found

    def _observed_arguments(self) -> dict[str, str]:
        """Observed site -> the argument that holds its data."""
        compiled = self.compiled
        if isinstance(compiled.data, Streamed):
            raise ArgumentError(f"data is a DataLoader, whose rows are not all there. {INSTEAD}")
        if not compiled.data.columns:
            raise ArgumentError(
                "The model closes over its data, so that none can be put in their place. Let it take what it observes "
                "as an argument, and pass it in data."
            )
        arguments: dict[str, str] = {}
        for site in compiled.structure.of_kind("factor", "observed"):
            if site.kind == "factor":
                raise ModelError(
                    f"Site '{site.name}' is a pyro.factor, from which no data can be drawn. Write it as an observed "
                    "site: pyro.sample with obs."
                )
            if site.argument is None:
                raise ModelError(
                    f"Site '{site.name}' observes what is no argument of the model, so that simulated data cannot take "
                    "its place. Compute it before (y.log(), say), and pass it in data as it is observed."
                )
            if site.argument in arguments.values():
                raise ModelError(f"Two sites observe '{site.argument}', of which one is '{site.name}'. Pass it twice.")
            arguments[site.name] = site.argument
        return arguments

    def _as_column(self, name: str, value: Tensor, column: Tensor) -> Tensor:
        if value.shape != column.shape:
            raise ModelError(
                f"Site '{name}' is drawn in shape {tuple(value.shape)}, and '{self.arguments[name]}', which it "
                f"observes, has shape {tuple(column.shape)}. Draw one value for each of these: expand the "
                "distribution, or put it in the plate of the rows."
            )
        return value.to(column.dtype)

    def _check_same(self, first: Simulated, found: Run) -> None:
        """Raises `ModelError` where the model, run on the data that it drew, does not see what it drew."""
        for site in found.sites.values():
            if not is_factor(site) and torch.as_tensor(user_scale(site)).ne(1).any():
                raise ModelError(
                    f"Site '{site['name']}' is weighted by poutine.scale, and data drawn from it would not be. Leave "
                    "the weights out, or repeat the rows."
                )
        if self.compiled.structure.of_kind("enumerated"):
            return  # their values would be others
        with torch.no_grad(), seeded(0, first.compiled.data.device):
            again = run(self.compiled.model, first.compiled.data, first.compiled.data.rows, FromValues(first.values))
        for name, argument in self.arguments.items():
            if not _alike(found.sites[name], again.sites[name]):
                raise ModelError(
                    f"Site '{name}' does not see what was drawn for '{argument}': the model computes with it before it "
                    "observes it, or conditions on it elsewhere. Pass what is observed as an argument of its own, that "
                    f"is used in obs= alone; got arguments {names_of(list(first.data))}."
                )


def _alike(drawn: PyroSite, seen: PyroSite) -> bool:
    """The same value with the same density."""
    shapes = drawn["value"].shape == seen["value"].shape and is_data(seen)
    return shapes and same(drawn["value"], seen["value"]) and same(log_prob(drawn), log_prob(seen))
