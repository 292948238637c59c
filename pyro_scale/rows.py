"""Which sites follow the rows of the data: found by comparing two runs on different rows, and another number of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_scale.data import Data, Model, names_of
from pyro_scale.handlers import (
    FromPosition,
    PyroSite,
    Run,
    is_deterministic,
    is_factor,
    log_prob,
    plate_factor,
    run,
    seeded,
)
from pyro_scale.types import Position

PROBE_SIZES = (5, 7)
"""Rows of the second run: the first of these that differs from the first run's number of rows."""


@dataclass(frozen=True)
class RowAxis:
    """Where a site's log density has one value a row: an axis counted from the right.

    Attributes:
        axis: of the log density's shape; negative.
        unwrap: whether the axis is one that `Independent` declares as an event, so that it has to come off first.
    """

    axis: int
    unwrap: bool = False


@dataclass
class Comparison:
    """A reference run, and a run on other rows and another number of them.

    Attributes:
        reference: the run on the rows that the model is compiled for.
        other: the other run; None where the model cannot do it.
        sizes: number of rows in each.
        num_data: number of rows of the whole data.
        problems: what stands in the way of minibatches, in the order found.
    """

    reference: Run
    other: Run | None
    sizes: tuple[int, int]
    num_data: int
    problems: list[str] = field(default_factory=list)

    def twin(self, site: PyroSite) -> PyroSite | None:
        """The same site in the other run."""
        return None if self.other is None else self.other.sites[site["name"]]


def compare(
    model: Model, data: Data, reference: Run, position: Position, size: int, generator: torch.Generator
) -> Comparison:
    """Runs the model once more, on other rows and another number of them, at the same position where it can be."""
    other_size = next(n for n in PROBE_SIZES if n != size)
    indices = torch.randint(data.num_data, (other_size,), generator=generator).to(data.device)
    compared = Comparison(reference, None, (size, other_size), data.num_data)
    try:
        with seeded(0, data.device):
            other = run(model, data, data.take(indices), FromPosition(dict(position), generator))
            for site in other.sites.values():
                log_prob(site)
    except Exception as error:  # whatever a model of fixed size raises; it is reported, or used in full batch only
        compared.problems.append(
            f"The model runs on {size} rows but not on {other_size}: {type(error).__name__}: {error}. Take sizes from "
            "the arguments, as in plate('data', len(x)), and pass per-row arrays in data."
        )
        return compared
    if changed := reference.sites.keys() ^ other.sites.keys():
        compared.problems.append(_changed_sites(reference, other, changed))
        return compared
    compared.other = other
    return compared


def _changed_sites(reference: Run, other: Run, changed: set[str]) -> str:
    name = min(changed)
    site = reference.sites.get(name) or other.sites[name]
    for frame in site["cond_indep_stack"]:
        if not frame.vectorized:
            return (
                f"Plate '{frame.name}' is a sequential loop over rows (site '{name}'), which cannot be minibatched. "
                f"Write `with pyro.plate(...)` and one vectorised site, or use batch_size=None."
            )
    return (
        f"The number of rows decides which sites exist: {names_of(sorted(changed))} came or went. Put the rows in a "
        "plate, `with pyro.plate(...)`, or use batch_size=None."
    )


def row_axis(site: PyroSite, compared: Comparison) -> RowAxis | None:
    """The axis of an observed site's or factor's log density that follows the rows; None if none does."""
    name, other, sizes = site["name"], compared.twin(site), compared.sizes
    if other is None:
        axes = [frame.dim for frame in site["cond_indep_stack"] if frame.vectorized and frame.size == sizes[0]]
        return RowAxis(axes[0]) if axes else None
    _check_scale(site, other, compared)
    for unwrap in (False, True):
        if unwrap and not hasattr(site["fn"], "reinterpreted_batch_ndims"):
            break
        axes = _following(log_prob(site, unwrap=unwrap).shape, log_prob(other, unwrap=unwrap).shape, sizes)
        if len(axes) == 1:
            return RowAxis(axes[0], unwrap)
        if axes:
            compared.problems.append(
                f"Site '{name}' has {len(axes)} axes that follow the rows of the data; minibatches need one. Pass one "
                "of them in constants, or use batch_size=None."
            )
            return None
    if site["value"].shape != other["value"].shape or not same(log_prob(site), log_prob(other)):
        what = "is a factor that changes with" if is_factor(site) else "is a joint event over"
        compared.problems.append(
            f"Site '{name}' {what} the rows of the data, and its log density does not split over them. Put it in the "
            "plate, one value a row: `with pyro.plate('data', len(x)): ...`, or use batch_size=None."
        )
    return None


def is_local(site: PyroSite, compared: Comparison) -> bool:
    """Whether a latent or deterministic site's value follows the rows."""
    name, other = site["name"], compared.twin(site)
    if other is None:
        return any(frame.size == compared.sizes[0] for frame in site["cond_indep_stack"])
    if is_deterministic(site):
        return not same(site["value"], other["value"])
    if site["value"].shape != other["value"].shape:
        compared.problems.append(
            f"Site '{name}' is a latent value a row: {tuple(site['value'].shape)} with {compared.sizes[0]} rows, "
            f"{tuple(other['value'].shape)} with {compared.sizes[1]}. Use batch_size=None, or give it a size of its "
            "own (a number of groups in constants) and index it by a column of data."
        )
        return True
    if not (same(site["value"], other["value"]) and same(log_prob(site), log_prob(other))):
        compared.problems.append(
            f"The prior of site '{name}' changes with the rows of the data. Compute what it depends on from all rows "
            "beforehand and pass it in constants, or use batch_size=None."
        )
    return False


def row_dim(compared: Comparison) -> str:
    """Name of the plate over the rows; "row" if the model has none."""
    for site in compared.reference.sites.values():
        other = compared.twin(site)
        for frame in site["cond_indep_stack"]:
            twins = {} if other is None else {twin.name: twin.size for twin in other["cond_indep_stack"]}
            grows = twins.get(frame.name, compared.sizes[1]) == compared.sizes[1]
            if frame.vectorized and frame.size == compared.sizes[0] and grows:
                return str(frame.name)
    return "row"


def same(one: Tensor, other: Tensor) -> bool:
    """Equal shapes, and values up to rounding."""
    if one.shape != other.shape:
        return False
    tolerance = 1e-9 if one.dtype == torch.float64 else 1e-4
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)


def _following(shape: torch.Size, other: torch.Size, sizes: tuple[int, int]) -> list[int]:
    """Axes, counted from the right, as long as the rows in both runs."""
    if len(shape) != len(other):
        return []
    pairs = zip(shape, other, strict=True)
    return [axis - len(shape) for axis, pair in enumerate(pairs) if pair == sizes]


def _check_scale(site: PyroSite, other: PyroSite, compared: Comparison) -> None:
    for frame in site["cond_indep_stack"]:
        follows = frame.vectorized and frame.size == compared.sizes[0]
        if follows and frame.full_size not in (frame.size, compared.num_data):
            compared.problems.append(
                f"Plate '{frame.name}' declares {frame.full_size} rows, but data has {compared.num_data}. Give the "
                "plate the number of rows of the whole data."
            )
    own, others = (s["scale"] / plate_factor(s) for s in (site, other))
    if not (isinstance(own, Tensor) and own.ndim) and abs(float(own) - float(others)) > 1e-6 * abs(float(own)):
        compared.problems.append(
            f"Site '{site['name']}' is scaled by {float(own):g} with {compared.sizes[0]} rows and by "
            f"{float(others):g} with {compared.sizes[1]}. Minibatches are scaled by N/n here already: remove "
            "poutine.scale from the model."
        )
