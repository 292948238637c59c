r"""Laplace's approximation with a diagonal precision but for a few directions, those that the rows tell most of.

In units of the prior, $u = \Lambda_0^{-1/2}$ of the diagonal $\Lambda_0$ of its precision, what is left of the
precision is $u \Lambda u = I + M$. The largest eigenvalues of M and their directions V are found by subspace iteration
from random vectors: Halko, Martinsson & Tropp (2011), algorithms 4.4 and 5.3. With all directions kept it is the dense
approximation; directions that are left out are as wide as the prior has them.

References:
    Halko, Martinsson & Tropp (2011), Finding structure with randomness, SIAM Review.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.checks import check_count
from pyro_scale.curvature.jacobian import Linearised
from pyro_scale.curvature.products import gauss_newton_products
from pyro_scale.errors import ModelError
from pyro_scale.gaussians.low_rank import LowRankGaussian
from pyro_scale.kernels.laplace import (
    Approximation,
    Sites,
    check_settings,
    chosen_sites,
    heaviest,
    info_of,
    likelihood_curvature,
    of_all_rows,
    positive,
    prior_curvature,
    with_held,
)
from pyro_scale.kernels.map import MAP
from pyro_scale.types import BoundKernel, Fitting, Info, Position, Settings, Shapes

CURVATURES = ("ggn", "fisher", "hessian")
MORE = 10
"""Random vectors beyond the rank, which make its directions the right ones."""


@dataclass(frozen=True)
class LowRankLaplace:
    """Settings of Laplace's approximation with a precision of a diagonal and a low rank; memory of 2 rank positions.

    Args:
        rank: directions in which it differs from the prior; >= 1. With as many as coordinates it is dense.
        curvature: of the log-likelihood: "ggn", the generalised Gauss-Newton matrix, "fisher", the empirical Fisher
            information, or "hessian".
        sites: names or patterns of the latent sites that are normal, as "4.*" for a last layer; the others are held at
            the mode. None for all.
        temperature: the posterior to the power 1 / temperature is approximated; > 0.
        passes: over all rows; >= 1. Each takes away a large part of what the one before missed.
        optimizer: what finds the mode: `MAP` with its settings.

    Raises:
        ArgumentError: a setting is out of its range.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> import pyro_scale as ps
        >>> def model(x, y):
        ...     w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("obs", dist.Normal(x @ w, 1.0), obs=y)
        >>> data = {"x": torch.tensor([[1.0, 1.0], [1.0, 1.0]]), "y": torch.ones(2)}
        >>> posterior = ps.infer(model, data, LowRankLaplace(rank=1), seed=0)
        >>> (1 / posterior.approximation.stretch**2).round()
        tensor([5.])
    """

    step_size: ClassVar[None] = None

    rank: int = 20
    curvature: str = "ggn"
    sites: Sites = None
    temperature: float = 1.0
    passes: int = 3
    optimizer: MAP = field(default_factory=MAP)

    def __post_init__(self) -> None:
        check_settings(self, CURVATURES)
        check_count("LowRankLaplace: rank", self.rank, 1)
        check_count("LowRankLaplace: passes", self.passes, 1)

    def fitting(self, num_chains: int) -> Fitting:
        """That of its optimiser."""
        return self.optimizer.fitting(num_chains)

    def chosen(self, position: Position) -> list[str]:
        """The sites that are normal; raises `ArgumentError` where there are none."""
        return chosen_sites("LowRankLaplace", self.sites, position)

    def bind(self, target: Any, num_data: int) -> BoundKernel:
        """Joins the settings to a target over `num_data` rows."""
        return BoundKernel(
            noise_shape=partial(noise_shape, self.sites, self.rank),
            init=partial(init, target, self.sites),
            update=partial(update, target, self.curvature, {}),
            approximation=lambda state: self.approximate(target, num_data, state).gaussian,
        )

    def approximate(self, target: Any, num_data: int, state: LowRankLaplaceState) -> Approximation:
        """The normal distribution around the position of a state that has seen some rows, best all."""
        mean, units = {name: state.position[name] for name in state.names}, state.units
        shapes, product = tree.shapes(mean), self.product(target, num_data, state)
        small = product @ state.basis.T
        eigenvalues, turned = torch.linalg.eigh((small + small.T) / 2)
        kept = eigenvalues.abs().argsort(descending=True)[: self.rank]
        directions, values = (turned.T[kept] @ state.basis).T, 1 + eigenvalues[kept]
        clamped = heaviest(directions[:, values <= 0], shapes) if bool((values <= 0).any()) else {}
        least = torch.finfo(values.dtype).eps
        scale = tree.unravel(units * self.temperature**0.5, shapes)
        gaussian = LowRankGaussian(mean, scale, directions, values.abs().clamp(min=least).rsqrt())
        return Approximation(with_held(gaussian, state.position), clamped)

    def product(self, target: Any, num_data: int, state: LowRankLaplaceState) -> Tensor:
        """M times the vectors of the basis, `(r, d)`: the rows' part and what of the prior is not diagonal."""
        prior = prior_curvature(target, state.position, state.names)(state.basis * state.units)
        return of_all_rows(num_data, state.rows) * state.product + prior * state.units - state.basis


class LowRankLaplaceState(NamedTuple):
    """What subspace iteration needs.

    Attributes:
        position: the mode.
        names: the chosen sites.
        units: u, `(d,)`.
        basis: orthonormal vectors, `(r, d)`.
        product: of the rows seen so far, in units of u, with them.
        rows: how many they were.
    """

    position: Position
    names: list[str]
    units: Tensor
    basis: Tensor
    product: Tensor
    rows: Tensor


def noise_shape(sites: Sites, rank: int, position: Position) -> Shapes:
    """Random vectors; leaves `(r, *site)`."""
    names = chosen_sites("LowRankLaplace", sites, position)
    number = min(rank + MORE, sum(position[name].numel() for name in names))
    return {name: torch.Size((number, *position[name].shape)) for name in names}


def init(target: Any, sites: Sites, position: Position, noise: Position) -> LowRankLaplaceState:
    """At a mode, no row seen yet; a pass starts from noise, or from the product of the pass before as a tree."""
    names = chosen_sites("LowRankLaplace", sites, position)
    shapes = {name: position[name].shape for name in names}
    prior = tree.unravel(prior_curvature(target, position, names).diagonal(), shapes)
    precision, negative = positive("LowRankLaplace", prior)
    if negative:
        name = min(negative)
        raise ModelError(
            f"LowRankLaplace: the log prior of site '{name}' is not concave at the mode ({negative[name]} directions), "
            "so that it gives no width to the directions that are left out. Use 'laplace_dense', "
            "'laplace_kfac' or 'laplace_diag'."
        )
    basis, _ = torch.linalg.qr(tree.flat(noise, shapes).T)
    rows = torch.zeros((), dtype=torch.long)
    units = tree.ravel(precision).rsqrt()
    return LowRankLaplaceState(position, names, units, basis.T.contiguous(), torch.zeros_like(basis.T), rows)


def update(
    target: Any,
    curvature: str,
    known: dict[Any, frozenset[str]],
    state: LowRankLaplaceState,
    batch: Any,
    noise: Any,
    settings: Settings,
) -> tuple[LowRankLaplaceState, Info]:
    """Adds the product of some rows; the position stays."""
    vectors, clamped = state.basis * state.units, torch.zeros((), dtype=torch.long)
    if curvature == "hessian":
        added = likelihood_curvature(target, state.position, state.names, batch)(vectors)
    else:
        linearised = Linearised(target, curvature, state.position, state.names, batch, known=known)
        added, clamped = gauss_newton_products(linearised, vectors), linearised.clamped
    product = state.product + added * state.units
    return state._replace(product=product, rows=state.rows + len(batch.indices)), info_of(clamped)
