r"""Laplace's approximation with the full precision; for some thousand coordinates.

$$p(\theta \mid y) \approx N(\hat\theta, T \Lambda^{-1}), \qquad
\Lambda = -\nabla^2 \log p(\hat\theta) + \sum_n J_n^\top H_n J_n :$$

MacKay (1992); with a normal likelihood of linear outputs and a normal prior it is the posterior.

References:
    MacKay (1992), A practical Bayesian framework for backpropagation networks, Neural Computation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.curvature.dense import gauss_newton_matrix
from pyro_scale.curvature.jacobian import Linearised
from pyro_scale.errors import ArgumentError
from pyro_scale.gaussians.dense import DenseGaussian
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
from pyro_scale.types import BoundKernel, Fitting, Info, Position, Settings

CURVATURES = ("ggn", "fisher", "hessian")
MOST_COORDINATES = 20_000


@dataclass(frozen=True)
class DenseLaplace:
    """Settings of Laplace's approximation with a dense precision; memory and time of matrices of all coordinates.

    Args:
        curvature: of the log-likelihood. "ggn": the generalised Gauss-Newton matrix, positive and the Hessian where the
            outputs are linear; "fisher": the empirical Fisher information, of gradients of rows; "hessian": itself.
        sites: names or patterns of the latent sites that are normal, as "4.*" for a last layer; the others are held at
            the mode. None for all.
        temperature: the posterior to the power 1 / temperature is approximated; > 0.
        optimizer: what finds the mode: `MAP` with its settings.

    Raises:
        ArgumentError: a setting is out of its range, or there are more than 20,000 coordinates.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> import pyro_scale as ps
        >>> def model(x, y):
        ...     w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("obs", dist.Normal(x @ w, 1.0), obs=y)
        >>> data = {"x": torch.tensor([[1.0, 1.0], [1.0, 0.0]]), "y": torch.ones(2)}
        >>> posterior = ps.infer(model, data, "laplace_dense", seed=0)
        >>> (posterior.approximation.factor @ posterior.approximation.factor.T * 5).round()
        tensor([[ 2., -1.],
                [-1.,  3.]])
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
        """The sites that are normal; raises `ArgumentError` where there are none, or too many coordinates."""
        return checked_sites(self.sites, position)

    def bind(self, target: Any, num_data: int) -> BoundKernel:
        """Joins the settings to a target over `num_data` rows."""
        return BoundKernel(
            noise_shape=lambda position: (),
            init=partial(init, self.sites),
            update=partial(update, target, self.curvature, {}),
            approximation=lambda state: self.approximate(target, num_data, state).gaussian,
        )

    def approximate(self, target: Any, num_data: int, state: DenseLaplaceState) -> Approximation:
        """The normal distribution around the position of a state that has seen some rows, best all."""
        mean = {name: state.position[name] for name in state.names}
        prior = prior_curvature(target, state.position, state.names).dense()
        precision = (prior + of_all_rows(num_data, state.rows) * state.matrix) / self.temperature
        factor, clamped = inverse_root(precision, tree.shapes(mean))
        gaussian = DenseGaussian(mean, factor.to(precision))
        return Approximation(with_held(gaussian, state.position), clamped)


class DenseLaplaceState(NamedTuple):
    """A position, the chosen sites, the matrix of the rows seen so far, `(d, d)`, and how many they were."""

    position: Position
    names: list[str]
    matrix: Tensor
    rows: Tensor


def init(sites: Sites, position: Position, noise: Any) -> DenseLaplaceState:
    """At a mode, no row seen yet."""
    names = checked_sites(sites, position)
    size = sum(position[name].numel() for name in names)
    matrix = position[names[0]].new_zeros(size, size)
    return DenseLaplaceState(position, names, matrix, torch.zeros((), dtype=torch.long))


def checked_sites(sites: Sites, position: Position) -> list[str]:
    """The chosen sites, if they are not too large."""
    names = chosen_sites("DenseLaplace", sites, position)
    size = sum(position[name].numel() for name in names)
    if size > MOST_COORDINATES:
        raise ArgumentError(
            f"DenseLaplace: {size:,} coordinates make matrices too large; at most {MOST_COORDINATES:,}. Use "
            "'laplace_kfac', 'laplace_lowrank' or 'laplace_diag', or fewer sites=."
        )
    return names


def update(
    target: Any,
    curvature: str,
    known: dict[Any, frozenset[str]],
    state: DenseLaplaceState,
    batch: Any,
    noise: Any,
    settings: Settings,
) -> tuple[DenseLaplaceState, Info]:
    """Adds the matrix of some rows; the position stays."""
    clamped = torch.zeros((), dtype=torch.long)
    if curvature == "hessian":
        added = likelihood_curvature(target, state.position, state.names, batch).dense()
    else:
        linearised = Linearised(target, curvature, state.position, state.names, batch, known=known)
        added, clamped = gauss_newton_matrix(linearised), linearised.clamped
    state = state._replace(matrix=state.matrix + added, rows=state.rows + len(batch.indices))
    return state, info_of(clamped)


def inverse_root(precision: Tensor, shapes: dict[str, torch.Size]) -> tuple[Tensor, dict[str, int]]:
    """Lower triangle L with L L' the inverse, and the directions in which it was not positive, by site.

    In double precision, and in coordinates that make the diagonal one: the units of sites are not to count.
    """
    diagonal, _ = positive("DenseLaplace", tree.unravel(precision.diagonal(), shapes))
    scale = tree.ravel(diagonal).double().rsqrt()
    scaled = scale[:, None] * precision.double() * scale
    least = len(scale) * torch.finfo(precision.dtype).eps
    clamped: dict[str, int] = {}
    eigenvalues, basis = torch.linalg.eigh((scaled + scaled.T) / 2)
    if not bool(eigenvalues[0] > least):
        clamped = heaviest(basis[:, eigenvalues <= least], shapes)
        scaled = (basis * eigenvalues.abs().clamp(min=least)) @ basis.T
    turned = torch.linalg.cholesky(((scaled + scaled.T) / 2).flip(0, 1)).flip(0, 1)
    identity = torch.eye(len(scale), dtype=torch.float64, device=scale.device)
    return scale[:, None] * torch.linalg.solve_triangular(turned.T, identity, upper=False), clamped
