r"""What the Laplace approximations have in common: whose curvature, in which sites, at which temperature.

With the mode $\hat\theta$ of the log posterior and its negative Hessian $\Lambda$ there, the posterior is about
$N(\hat\theta, T \Lambda^{-1})$ (MacKay (1992)). $\Lambda$ is the negative Hessian of the log prior, Jacobian
included, exactly, and a curvature of the log-likelihood of all rows, of which the structures differ: `curvature/`.

References:
    MacKay (1992), A practical Bayesian framework for backpropagation networks, Neural Computation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.curvature.hessian import NegativeHessian
from pyro_scale.errors import ArgumentError, ModelError
from pyro_scale.gaussians.held import HeldGaussian
from pyro_scale.kernels.map import MAP
from pyro_scale.types import Batch, CurvatureTarget, Gaussian, Info, Position

Sites: TypeAlias = "str | Sequence[str] | None"


class Approximation(NamedTuple):
    """What a Laplace kernel comes to.

    Attributes:
        gaussian: over the chosen sites, the others held.
        clamped: site -> number of directions, most of all in it, in which the precision was not positive: its absolute
            value is taken there.
    """

    gaussian: Gaussian
    clamped: dict[str, int]


def check_settings(kernel: Any, known: Sequence[str]) -> None:
    """Refuses settings that no Laplace approximation has, and a curvature that is not among those known."""
    owner, curvature, sites, temperature = type(kernel).__name__, kernel.curvature, kernel.sites, kernel.temperature
    if not isinstance(kernel.optimizer, MAP):
        raise ArgumentError(
            f"{owner}: optimizer is {kernel.optimizer!r}; it must be a MAP, as ps.kernels.MAP(step_size=0.01)."
        )
    if curvature not in known:
        which = " or ".join(f"'{each}'" for each in known)
        raise ArgumentError(f"{owner}: curvature is {curvature!r}; it must be {which}.")
    if isinstance(temperature, bool) or not isinstance(temperature, int | float):
        raise ArgumentError(f"{owner}: temperature is {temperature!r}; it must be a number > 0, as 1.0.")
    if not (math.isfinite(temperature) and temperature > 0):
        raise ArgumentError(
            f"{owner}: temperature is {temperature!r}; it must be > 0. Without any spread a posterior is its mode: "
            "method='map'."
        )
    patterns = [sites] if isinstance(sites, str) else sites
    if patterns is not None and (
        not isinstance(patterns, Sequence) or not patterns or not all(isinstance(each, str) for each in patterns)
    ):
        raise ArgumentError(
            f"{owner}: sites is {sites!r}; it must be a name or pattern of latent sites, as '4.*', a list of them, or "
            "None for all."
        )


def chosen_sites(owner: str, sites: Sites, position: Position) -> list[str]:
    """The sites that patterns name, in the order of the position; all for None.

    Raises:
        ArgumentError: a pattern matches none.
    """
    if sites is None:
        return list(position)
    patterns = [sites] if isinstance(sites, str) else list(sites)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in position):
            raise ArgumentError(
                f"{owner}: sites has the pattern {pattern!r}, which matches no latent site; they are "
                f"{', '.join(repr(name) for name in position)}."
            )
    return [name for name in position if any(fnmatchcase(name, pattern) for pattern in patterns)]


def prior_curvature(target: CurvatureTarget, position: Position, names: Sequence[str]) -> NegativeHessian:
    """Of minus the log prior."""
    return NegativeHessian(target.log_prior, position, names)


def likelihood_curvature(
    target: CurvatureTarget, position: Position, names: Sequence[str], batch: Batch
) -> NegativeHessian:
    """Of minus the log-likelihood of a batch, unscaled."""

    def total(at: Position) -> Tensor:
        return torch.stack([term.sum() for term in target.log_likelihood(at, batch).values()]).sum()

    return NegativeHessian(total, position, names)


def info_of(clamped: Tensor) -> Info:
    """Of a step that adds rows: the log posterior would take another run of the model, and does not change."""
    return Info(torch.full((), torch.nan), clamped)


def of_all_rows(num_data: int, rows: Tensor) -> float:
    """What makes sums over the rows that were seen those over all."""
    return num_data / max(1, int(rows))


def positive(owner: str, values: Position) -> tuple[Position, dict[str, int]]:
    """Precisions by direction with a positive sign, and how many had none.

    Raises:
        ModelError: one is 0: nothing says how wide the posterior is there.
    """
    clamped = {}
    for name, leaf in values.items():
        flat = int((leaf.abs() <= torch.finfo(leaf.dtype).tiny).sum())
        if flat:
            raise ModelError(
                f"{owner}: the log posterior is flat in site '{name}' ({flat} of {leaf.numel()} directions): neither "
                "the prior nor any row says how wide it is. Give it a proper prior."
            )
        if not bool(leaf.isfinite().all()):
            raise ModelError(
                f"{owner}: the curvature of site '{name}' is not finite. Look for values at the edge of a support, or "
                "compute with dtype=torch.float64."
            )
        if number := int((leaf < 0).sum()):
            clamped[name] = number
    return tree.map(torch.abs, values), clamped


def heaviest(vectors: Tensor, shapes: dict[str, Any]) -> dict[str, int]:
    """Site -> of how many directions, columns of `(d, n)`, it has the largest part."""
    parts = torch.stack([part.square().sum(0) for part in vectors.split([s.numel() for s in shapes.values()])])
    names: list[str] = list(shapes)
    found: dict[str, int] = {}
    for index in parts.argmax(0).tolist():
        found[names[index]] = found.get(names[index], 0) + 1
    return found


def with_held(gaussian: Gaussian, position: Position) -> Gaussian:
    """Over all sites, those that it lacks held where they are."""
    held = {name: leaf for name, leaf in position.items() if name not in gaussian.mean}
    return HeldGaussian(gaussian, held, tuple(position)) if held else gaussian
