"""Rows other than those of the fit: checked against them, with or without observations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyro_scale.compile import CompiledModel
from pyro_scale.data import Data, read
from pyro_scale.errors import ArgumentError, DataError, ModelError, PyroScaleError
from pyro_scale.handlers import FromValues, Run, run, seeded
from pyro_scale.plates import new_table
from pyro_scale.records import log_prob
from pyro_scale.support import check_support


def new_rows(compiled: CompiledModel, data: Any, *, without_observations: bool = False) -> Data:
    """Other rows for the same model, checked against those of the fit.

    Args:
        compiled: the fitted model.
        data: in the form that `compile_model` takes.
        without_observations: arguments that are only observed may be missing; the model then gets None for them.

    Raises:
        ArgumentError, DataError: as `compile_model`; or rows of another shape than those of the fit.
    """
    if isinstance(data, Mapping):
        data = {name: value for name, value in data.items() if value is not None}
    observed = {site.argument for site in compiled.structure.of_kind("observed") if site.argument}
    fitted = compiled.data
    if not fitted.columns:
        raise ArgumentError(
            f"The model closes over its data (plate '{fitted.plate}'), so that it takes no other rows. Let the model "
            "take what has a row for each observation as arguments, and pass them in data."
        )
    optional = frozenset(observed) if without_observations else frozenset()
    constants = {name: value for name, value in fitted.constants.items() if name not in fitted.whole}
    table = read(compiled.model, data, constants, dtype=fitted.dtype, device=fitted.device, optional=optional)
    if not table.rows:
        raise DataError("data is empty: no array was passed. Pass new rows, as in data={'x': x}.")
    for name, value in table.rows.items():
        if name in fitted.columns:
            table.rows[name] = _as_fitted(name, value, fitted.columns[name])
    absent = {name: None for name in optional if name not in table.rows}
    return new_table(fitted, replace(table, constants={**table.constants, **absent}, params=fitted.params))


def _as_fitted(name: str, value: Tensor, fitted: Tensor) -> Tensor:
    """New rows in the type of those of the fit: whole numbers may stand for real ones, not the reverse."""
    if value.shape[1:] != fitted.shape[1:]:
        raise DataError(
            f"data['{name}'] has rows of shape {tuple(value.shape[1:])}; those of the fit have shape "
            f"{tuple(fitted.shape[1:])}. Pass the same columns in the same order."
        )
    if value.is_floating_point() and not fitted.is_floating_point():
        raise DataError(
            f"data['{name}'] is {value.dtype} and was {fitted.dtype} in the fit. Pass whole numbers, as with .long()."
        )
    return value.to(fitted.dtype)


def unobserved(compiled: CompiledModel, draws: Mapping[str, Tensor]) -> list[str]:
    """Sites observed in the fit that the rows of `compiled` bring no observations for."""
    found = _at_draw(compiled, draws, 0).sites
    sites = [site.name for site in compiled.structure.of_kind("observed")]
    return [name for name in sites if name not in found or not found[name]["is_observed"]]


def can_score(compiled: CompiledModel, draws: Mapping[str, Tensor]) -> bool:
    """Whether new rows come with all observations, and no latent site lacks values for them."""
    local = [site for site in compiled.structure.of_kind("latent") if site.local]
    return not unobserved(compiled, draws) and not local


def check_observations(compiled: CompiledModel, draws: Mapping[str, Tensor]) -> None:
    """Raises `ArgumentError` where observations are missing, and `DataError` where one is outside its support."""
    if missing := unobserved(compiled, draws):
        argument = compiled.sites[missing[0]].argument
        name = "its observations" if argument is None else f"'{argument}'"
        raise ArgumentError(f"The log-likelihood of site '{missing[0]}' needs observations: pass {name} in data.")
    first, last = _at_draw(compiled, draws, 0), _at_draw(compiled, draws, -1)
    check_support(compiled.model, compiled.data, compiled.data.rows, None, first, last, {}, {})
    with _refusing(compiled):
        for site in first.sites.values():
            log_prob(site)


def _at_draw(compiled: CompiledModel, draws: Mapping[str, Tensor], index: int) -> Run:
    """The model run at one draw; latent sites without draws take any value."""
    values = {name: value.flatten(0, 1)[index] for name, value in draws.items() if not compiled.sites[name].local}
    with _refusing(compiled), torch.no_grad(), seeded(0, compiled.data.device):
        return run(compiled.model, compiled.data, compiled.data.rows, FromValues(values), sample_discrete=True)


@contextmanager
def _refusing(compiled: CompiledModel) -> Iterator[None]:
    """What a model raises that computes with its observations, or has a fixed size, as a `ModelError`."""
    try:
        yield
    except PyroScaleError:
        raise
    except Exception as error:
        absent = [name for name, value in compiled.data.constants.items() if value is None]
        group = "An index column of these rows may name a group that the fit did not have. "
        hint = group if isinstance(error, IndexError) else ""
        without, remedy = (f" without '{absent[0]}'", f", or pass '{absent[0]}' along") if absent else ("", "")
        raise ModelError(
            f"The model does not run on these {compiled.num_data} rows{without}: {type(error).__name__}: {error}. "
            f"{hint}Take sizes from the arguments that are there, as in plate('data', len(x)){remedy}."
        ) from error
