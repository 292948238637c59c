r"""Laplace's approximation with independent coordinates: the diagonal of the precision, exactly.

$$p(\theta \mid y) \approx N(\hat\theta, T \, \mathrm{diag}(\Lambda)^{-1}), \qquad
\Lambda = -\nabla^2 \log p(\hat\theta) + \sum_n J_n^\top H_n J_n,$$

with the Jacobians $J_n$ of the outputs and the information $H_n$ of each row: Ritter, Botev & Barber (2018), section 3.
The curvatures of coordinates that share a direction count in full, so that it is narrower than the posterior.

References:
    Ritter, Botev & Barber (2018), A scalable Laplace approximation for neural networks, ICLR.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.curvature.diagonal import gauss_newton_diagonal
from pyro_scale.curvature.jacobian import Linearised
from pyro_scale.gaussians.diagonal import DiagonalGaussian
from pyro_scale.kernels.laplace import (
    Approximation,
    Sites,
    check_settings,
    chosen_sites,
    info_of,
    likelihood_curvature,
    of_all_rows,
    positive,
    prior_curvature,
    with_held,
)
from pyro_scale.kernels.map import MAP
from pyro_scale.types import BoundKernel, Fitting, Info, Position, Settings

CURVATURES = ("ggn", "fisher", "hessian")


@dataclass(frozen=True)
class DiagonalLaplace:
    """Settings of Laplace's approximation with a diagonal precision; memory of a few positions.

    Args:
        curvature: of the log-likelihood. "ggn": the generalised Gauss-Newton matrix, positive and the Hessian where the
            outputs are linear; "fisher": the empirical Fisher information, sums of squared gradients of rows;
            "hessian": itself, by a product a coordinate.
        sites: names or patterns of the latent sites that are normal, as "4.*" for a last layer; the others are held at
            the mode. None for all.
        temperature: the posterior to the power 1 / temperature is approximated; > 0.
        optimizer: what finds the mode: `MAP` with its settings.

    Raises:
        ArgumentError: a setting is out of its range.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> import pyro_scale as ps
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)
        >>> target = ps.compile_model(model, {"y": torch.full((3,), 2.0)})
        >>> bound = DiagonalLaplace().bind(target, num_data=3)
        >>> state = bound.init({"mu": torch.tensor(1.5)}, ())
        >>> state, _ = bound.update(state, target.batch(), (), Settings(None, 1.0))
        >>> bound.approximation(state).sd
        {'mu': tensor(0.5000)}
    """

    step_size: ClassVar[None] = None

    curvature: str = "ggn"
    sites: Sites = None
    temperature: float = 1.0
    optimizer: MAP = field(default_factory=MAP)

    def __post_init__(self) -> None:
        check_settings(self, CURVATURES)

    def fitting(self, num_chains: int) -> Fitting:
        """That of its optimiser."""
        return self.optimizer.fitting(num_chains)

    def chosen(self, position: Position) -> list[str]:
        """The sites that are normal; raises `ArgumentError` where there are none."""
        return chosen_sites("DiagonalLaplace", self.sites, position)

    def bind(self, target: Any, num_data: int) -> BoundKernel:
        """Joins the settings to a target over `num_data` rows."""
        return BoundKernel(
            noise_shape=lambda position: (),
            init=partial(init, self.sites),
            update=partial(update, target, self.curvature, {}),
            approximation=lambda state: self.approximate(target, num_data, state).gaussian,
        )

    def approximate(self, target: Any, num_data: int, state: DiagonalLaplaceState) -> Approximation:
        """The normal distribution around the position of a state that has seen some rows, best all."""
        found = prior_curvature(target, state.position, list(state.diagonal)).diagonal()
        prior = tree.unravel(found, tree.shapes(state.diagonal))
        scale = of_all_rows(num_data, state.rows)
        precision, clamped = positive("DiagonalLaplace", tree.map(lambda p, h: p + scale * h, prior, state.diagonal))
        sd = tree.map(lambda leaf: (self.temperature / leaf).sqrt(), precision)
        gaussian = DiagonalGaussian({name: state.position[name] for name in sd}, sd)
        return Approximation(with_held(gaussian, state.position), clamped)


class DiagonalLaplaceState(NamedTuple):
    """A position, the diagonal of the rows seen so far, by chosen site, and how many they were."""

    position: Position
    diagonal: Position
    rows: Tensor


def init(sites: Sites, position: Position, noise: Any) -> DiagonalLaplaceState:
    """At a mode, no row seen yet."""
    names = chosen_sites("DiagonalLaplace", sites, position)
    zeros = {name: torch.zeros_like(position[name]) for name in names}
    return DiagonalLaplaceState(position, zeros, torch.zeros((), dtype=torch.long))


def update(
    target: Any,
    curvature: str,
    known: dict[Any, frozenset[str]],
    state: DiagonalLaplaceState,
    batch: Any,
    noise: Any,
    settings: Settings,
) -> tuple[DiagonalLaplaceState, Info]:
    """Adds the diagonal of some rows; the position stays."""
    names, clamped = list(state.diagonal), torch.zeros((), dtype=torch.long)
    if curvature == "hessian":
        found = likelihood_curvature(target, state.position, names, batch).diagonal()
        added = tree.unravel(found, tree.shapes(state.diagonal))
    else:
        linearised = Linearised(target, curvature, state.position, names, batch, known=known)
        added, clamped = gauss_newton_diagonal(linearised), linearised.clamped
    total = tree.map(torch.add, state.diagonal, added)
    return DiagonalLaplaceState(state.position, total, state.rows + len(batch.indices)), info_of(clamped)
