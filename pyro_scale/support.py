"""Whether the observed values of all rows lie in the supports of their distributions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_scale.data import Data, Model
from pyro_scale.errors import DataError, PyroScaleError
from pyro_scale.first_runs import check_end
from pyro_scale.handlers import FromPosition, Run, run, seeded
from pyro_scale.loaders import Streamed
from pyro_scale.records import PyroSite, append_axes, holds, is_data
from pyro_scale.types import Position

BLOCK_ROWS = 4096
BLOCK_NUMBERS = 2**22
"""The model is run on blocks of at most so many rows and numbers, unless its batches are larger anyway."""


def check_support(
    model: Model,
    data: Data,
    rows: Mapping[str, Tensor],
    batch_size: int | None,
    reference: Run,
    elsewhere: Run,
    position: Position,
    known: Mapping[str, Supported],
) -> None:
    """Evaluates the supports at all rows: a label of 2 may sit in any batch.

    The model runs on the rows for it; where sites observe the very arguments, and their supports take nothing from the
    data, on blocks alone where a value of an argument is outside. Nothing is done for real values passed as data, which
    are known to be finite.

    Args:
        model: the Pyro model.
        data: all rows.
        rows: those of the two runs.
        batch_size: None if these are all.
        reference: a run at `position`.
        elsewhere: a run on the same rows at another position: supports that differ follow latent sites, and no
            value can be called wrong beforehand.
        position: unconstrained values of the latent sites.
        known: as `known_supports` finds them in the two runs; needed where the model would run on blocks of the rows.

    Raises:
        DataError: an observed value outside the support of its distribution.
    """
    given = data.columns_at(rows)
    names = [
        name
        for name, site in reference.sites.items()
        if is_data(site) and _checkable(site, elsewhere.sites[name]) and not _is_real_data(site, given)
    ]
    if not names:
        return
    whole = [(0, data.num_data, reference)]
    at_once = batch_size is None or isinstance(data, Streamed)  # the rows of a loader are checked as they come
    as_it_is = {name: each for name, each in known.items() if _is_passed(reference.sites[each.site], given[name], each)}
    if not {each.site for each in as_it_is.values()} >= set(names):
        as_it_is = {}
    for start, length, found in whole if at_once else _blocks(model, data, batch_size or 1, position, as_it_is):
        for name in names:
            if name in found.sites:
                _check_site(found.sites[name], start, length)


def known_supports(data: Data, rows: Mapping[str, Tensor], reference: Run, elsewhere: Run) -> dict[str, Supported]:
    """Argument -> the support of a site that observes it as it is, where that is the same for every row."""
    found = {}
    for name, site in reference.sites.items():
        if not is_data(site) or not _checkable(site, elsewhere.sites[name]):
            continue
        (fn, masks), given = _unwrapped(site), data.columns_at(rows)
        if not masks and _same_for_all_rows(fn.support):
            found.update({each: Supported(name, fn) for each, value in given.items() if holds(site, value)})
    return found


class Supported(NamedTuple):
    """An observed site, and its distribution for some rows."""

    site: str
    fn: Any

    def holds(self, value: Tensor) -> bool:
        """Whether all values are inside the support."""
        return bool(self.fn.support.check(value.to(torch.float64)).all())

    def check(self, value: Tensor) -> None:
        """Raises `DataError` where a value is outside the support."""
        value = value.to(torch.float64)
        inside = self.fn.support.check(value)
        if not bool(inside.all()):
            index = (~inside).nonzero()[0].tolist()
            raise DataError(
                f"site '{self.site}' observes {value[tuple(index)].tolist()} at index {index}, outside the support "
                f"{described(self.fn.support)} of its {type(self.fn).__name__}."
            )


def _same_for_all_rows(support: Any) -> bool:
    values = vars(support).values() if isinstance(support, constraints.Constraint) else ()
    parts = [value for value in values if isinstance(value, constraints.Constraint)]
    sizes = [value.numel() for value in values if isinstance(value, Tensor)]
    return all(size == 1 for size in sizes) and all(map(_same_for_all_rows, parts))


def _is_passed(site: PyroSite, given: Tensor, supported: Supported) -> bool:
    """Whether a site observes the very tensor that the model was passed, and its support has no number of the data."""
    passed = site["passed"]
    same = isinstance(passed, Tensor) and passed.data_ptr() == given.data_ptr() and passed.stride() == given.stride()
    return same and not _has_tensors(supported.fn.support)


def _has_tensors(support: Any) -> bool:
    values = vars(support).values()
    parts = [value for value in values if isinstance(value, constraints.Constraint)]
    return any(isinstance(value, Tensor) for value in values) or any(map(_has_tensors, parts))


def _blocks(
    model: Model, data: Data, batch_size: int, position: Position, as_it_is: Mapping[str, Supported]
) -> Iterator[tuple[int, int, Run]]:
    """(first row, number of rows, run on them); without blocks where all that is observed as it is, is supported."""
    width = sum(value[0].numel() for value in data.rows.values())
    block = max(batch_size, min(BLOCK_ROWS, BLOCK_NUMBERS // max(width, 1)))
    for start in range(0, data.num_data, block):
        rows = {name: value[start : start + block] for name, value in data.rows.items()}
        if as_it_is:
            columns = data.columns_at(rows)
            if all(supported.holds(columns[name]) for name, supported in as_it_is.items()):
                continue
        try:
            with torch.no_grad(), seeded(0, data.device):
                found = run(model, data, rows, FromPosition(dict(position), torch.Generator()))
        except PyroScaleError:
            raise
        except Exception as error:  # a model of fixed size; the comparison of two numbers of rows reports it
            check_end(data, error)
            return
        yield start, min(block, data.num_data - start), found


def _checkable(site: PyroSite, twin: PyroSite) -> bool:
    """Whether a site has a support, the same wherever the latent sites are."""
    try:
        return _equal(site["fn"].support, twin["fn"].support)
    except NotImplementedError:
        return False


def _is_real_data(site: PyroSite, rows: Mapping[str, Tensor]) -> bool:
    support = site["fn"].support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real and any(holds(site, given) for given in rows.values())


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, constraints.Constraint) and type(one) is type(other):
        return all(_equal(value, vars(other).get(name)) for name, value in vars(one).items())
    return one is other or bool(one == other)


def _check_site(site: PyroSite, start: int, length: int) -> None:
    (fn, masks), value = _unwrapped(site), site["value"]
    finite = torch.isfinite(value)
    inside = fn.support.check(value) & (finite.flatten(-fn.event_dim).all(-1) if fn.event_dim else finite)
    for mask in masks:
        inside = inside | ~torch.as_tensor(mask, device=inside.device, dtype=torch.bool)
    if bool(inside.all()):
        return
    index = (~inside).nonzero()[0].tolist()
    shown = value.expand(inside.shape + value.shape[inside.ndim :])[tuple(index)].tolist()
    if length in inside.shape:  # the axis of the rows
        index[inside.shape.index(length)] += start
    raise DataError(
        f"Site '{site['name']}' observes {shown} at index {index}, outside the support {described(fn.support)} of its "
        f"{type(fn).__name__}. Correct the data or the model."
    )


def _unwrapped(site: PyroSite) -> tuple[Any, list[Any]]:
    """The distribution within `to_event` and `mask`, and every mask in the shape of its batch.

    What is masked may hold any number, as -1 for a missing label.
    """
    fn, events, masks = site["fn"], 0, [(site["mask"], 0)]
    while isinstance(fn, (dist.Independent, dist.MaskedDistribution)):
        if isinstance(fn, dist.Independent):
            events += fn.reinterpreted_batch_ndims
        else:
            masks.append((fn._mask, events))
        fn = fn.base_dist
    return fn, [append_axes(mask, events - outside) for mask, outside in masks if mask is not None]


def described(support: Any) -> str:
    """In words without the bounds of every row."""
    text = str(support)
    return text if len(text) <= 60 else type(support).__name__
