"""Where chains start: near 0, at given values, at draws from the prior, or at modes; each chain by its own seed.

The starts of all chains are tried side by side, and only those at which the density is not finite are drawn again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.checks import derived_seeds
from pyro_scale.compile import CompiledModel
from pyro_scale.draws import over_chains, over_draws
from pyro_scale.errors import ArgumentError, StartError
from pyro_scale.gaussians import sample
from pyro_scale.given import Given, family_of
from pyro_scale.handlers import LatentSource, bijection, seeded
from pyro_scale.loaders import Streamed
from pyro_scale.mode import DENSE_LIMIT, adam, find_mode
from pyro_scale.records import PyroSite
from pyro_scale.starts import ATTEMPTS, candidates, is_finite, is_finite_or_fails, no_start
from pyro_scale.types import Batch, Position

logger = logging.getLogger("pyro_scale")

PRIOR_BLOCK = 64
PRIOR_NUMBERS = 2**22
"""So many draws of the prior are made at a time, of so many numbers: the same for any number of chains."""

Draw = Callable[[list[int], int], Position]
"""Starts of some chains, at an attempt that is counted from 0."""


def initial_positions(compiled: CompiledModel, initial: Any, seeds: Sequence[int]) -> Position:
    """The start of every chain, leaves `(num_chains, *site)`; that of a chain depends on `initial` and its seed alone.

    Args:
        compiled: the model.
        initial: as in `infer`.
        seeds: one a chain. With None the starts are those of `compiled.initial_position`.

    Raises:
        ArgumentError: `initial` names no latent site, or has a value of another shape or outside the support; the
            prior is improper.
        StartError: log density or gradient are not finite; a chain found no mode.
    """
    kind, given = _read(compiled, initial, len(seeds))
    near = [candidates(compiled, seed) for seed in seeds]

    def near_zero(chains: list[int], _: int) -> Position:
        return tree.map(lambda *leaves: torch.stack(leaves), *(near[chain][1]() for chain in chains))

    draw = _prior(compiled, seeds) if kind == "prior" else near_zero
    rows = _rows(compiled, [own for own, _ in near if own is not None])
    found, bad = _first_finite(compiled, draw, given, rows, len(seeds))
    if bad:
        at = tree.map(lambda leaf: leaf[bad[0]], found)
        if given is not None:
            given.check_support(bad[0], at)
        raise no_start(compiled, at, compiled.batch(None if rows is None else rows[bad[0]]), *_words(kind, bad[0]))
    return _modes(compiled, found, seeds) if kind == "mode" else found


def _rows(compiled: CompiledModel, rows: list[Tensor]) -> Tensor | None:
    """Rows on which the start of each chain is tried, `(num_chains, n)`; None for all rows."""
    if not rows:
        return None
    if isinstance(compiled.data, Streamed):  # which loads one row after another: the same for every chain
        return rows[0].expand(len(rows), -1)
    return torch.stack(rows)


def _read(compiled: CompiledModel, initial: Any, num_chains: int) -> tuple[str | None, Given | None]:
    if isinstance(initial, Mapping):
        return ("given", Given(compiled, initial, num_chains)) if initial else (None, None)
    if initial is None or (isinstance(initial, str) and initial in ("prior", "mode")):
        return initial, None
    raise ArgumentError(
        f"initial is {initial!r}; it must be 'prior', 'mode', a dict of values by site, or None for starts within 2 of "
        "0 in unconstrained space."
    )


def _words(kind: str | None, chain: int) -> tuple[str, str]:
    """Where starts were sought, and a remedy."""
    if kind == "given":
        return f"for chain {chain} at the values of initial", "Start these sites elsewhere, or leave them to chance."
    if kind == "prior":
        return (
            f"for chain {chain} in {ATTEMPTS} draws from the prior",
            "Check that the prior allows the data, or leave initial at None for starts within 2 of 0.",
        )
    return (
        f"in {ATTEMPTS} attempts within 2 of 0 in unconstrained space",
        "Check that the prior allows the data, or rescale.",
    )


def _first_finite(
    compiled: CompiledModel, draw: Draw, given: Given | None, rows: Tensor | None, num_chains: int
) -> tuple[Position, list[int]]:
    """The first start of every chain with a finite density, or the last that was tried; and the chains with none."""
    found: Position = {}
    waiting = list(range(num_chains))
    complete = given is not None and given.complete
    for attempt in range(1 if complete else ATTEMPTS):
        position, inside = {} if complete else draw(waiting, attempt), None
        if given is not None:
            position, inside = given.place(waiting, position)
        if attempt == 0:
            found = position if given is None or complete else tree.map(torch.clone, position)
        else:
            for name, leaf in position.items():
                found[name][waiting] = leaf
        good = _finite(compiled, position, None if rows is None else rows[waiting])
        good = good if inside is None else good & inside
        waiting = [chain for chain, fine in zip(waiting, good.tolist(), strict=True) if not fine]
        if not waiting:
            break
    return found, waiting


def _finite(compiled: CompiledModel, position: Position, rows: Tensor | None) -> Tensor:
    """Whether log density and gradient are finite, by chain: on rows of each chain's own, or on the same for all."""
    result: Tensor
    if rows is None or isinstance(compiled.data, Streamed):
        shared = compiled.batch(None if rows is None else rows[0])
        result = over_chains(
            lambda at: is_finite(compiled, at, shared), lambda at: is_finite_or_fails(compiled, at, shared), position
        )
        return result
    batch = compiled.batch(rows)
    scale = batch.scale
    result = over_chains(
        lambda at, data, indices: is_finite(compiled, at, Batch(data, indices, scale)),
        lambda at, data, indices: is_finite_or_fails(compiled, at, Batch(data, indices, scale)),
        position,
        batch.data,
        batch.indices,
    )
    return result


class FromPrior(LatentSource):
    """A draw of every latent site, from the global generator; `position` receives what it is unconstrained."""

    def __init__(self) -> None:
        super().__init__()
        self.position: Position = {}

    def set_value(self, msg: PyroSite) -> None:
        name, fn = msg["name"], msg["fn"]
        try:
            value = fn.sample().to(torch.zeros(()))
        except NotImplementedError as error:
            raise ArgumentError(
                f"initial is 'prior', and that of site '{name}' is {family_of(fn)}, which cannot be drawn from. "
                f"Give it a proper prior, leave initial at None, or start it at a value: initial={{'{name}': ...}}."
            ) from error
        self.position[name] = bijection(msg).inv(value)
        msg["value"] = value


def _prior(compiled: CompiledModel, seeds: Sequence[int]) -> Draw:
    """Chains draw in blocks whose size does not depend on how many chains there are, so that neither do the draws."""
    numbers = sum(shape.numel() for shape in compiled.latent.values())
    block = max(1, min(PRIOR_BLOCK, PRIOR_NUMBERS // max(1, numbers)))
    num_rows = compiled.rows_run(list(compiled.latent))

    def one(_: Position) -> Position:
        return compiled.position_of(FromPrior(), sample_discrete=True)

    def draw(chains: list[int], attempt: int) -> Position:
        parts = []
        for first in sorted({chain - chain % block for chain in chains}):
            within = [chain - first for chain in chains if first <= chain < first + block]
            seed = derived_seeds(seeds[first], attempt + 1)[-1]
            if compiled.structure.prior is not None:
                drawn = sample(compiled.structure.prior, block, torch.Generator().manual_seed(seed))
                parts.append(tree.map(lambda leaf, within=within: leaf[within], drawn))
                continue
            with seeded(seed, compiled.data.device):
                drawn = over_draws(one, {"": torch.zeros(block)}, "different", num_rows=num_rows)
            parts.append(tree.map(lambda leaf, within=within: leaf[within], drawn))
        return tree.map(lambda *leaves: torch.cat(leaves), *parts)

    return draw


def _modes(compiled: CompiledModel, starts: Position, seeds: Sequence[int]) -> Position:
    """Where the climbs from the starts end."""
    ends = [
        _climbed(compiled, tree.map(lambda leaf, chain=chain: leaf[chain], starts), seed)
        for chain, seed in enumerate(seeds)
    ]
    found = tree.map(lambda *leaves: torch.stack(leaves), *(position for position, _ in ends))
    if astray := [chain for chain, (_, converged) in enumerate(ends) if not converged]:
        told = (
            f"initial is 'mode', and {len(astray)} of {len(seeds)} chains reached none, the first of them chain "
            f"{astray[0]}: the log posterior may rise without end (a group sd at 0, separable classes without a prior) "
            "or be flat. Leave initial at None, start by initial='prior', or give the sites proper priors."
        )
        if tree.size(starts) // len(seeds) <= DENSE_LIMIT or not torch.isfinite(tree.ravel(found)).all():
            raise StartError(told)
        logger.warning("%s They start where their climb ended.", told)
    return found


def _climbed(compiled: CompiledModel, start: Position, seed: int) -> tuple[Position, bool]:
    """Where a climb ends, and whether it has converged; without the curvature, a Hessian product a coordinate."""
    if tree.size(start) > DENSE_LIMIT:
        position, converged, _ = adam(compiled, start, seed)
        return position, converged
    mode = find_mode(compiled, start)
    return mode.position, mode.converged
