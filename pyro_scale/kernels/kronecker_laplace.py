r"""Laplace's approximation with Kronecker factors: sites are independent, a layer's inputs and outputs make its block.

The precision of the matrix of a layer is $A \otimes B + \Delta$, with A the mean of its inputs' outer products, B the
sum of the outer products of its outputs' gradients (KFAC-expand where a weight is shared: `curvature/factors.py`), and
$\Delta$ the prior's: Ritter, Botev & Barber (2018), section 3. With $Q_A, Q_B$ their eigenvectors it is taken as
diagonal in $Q_A \otimes Q_B$,

$$E = a b^\top + (Q_A \circ Q_A)^\top \Delta \, (Q_B \circ Q_B),$$

which is exact where the prior's curvature is the same number for the whole matrix.

References:
    Ritter, Botev & Barber (2018), A scalable Laplace approximation for neural networks, ICLR.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.curvature.factors import Factors, kronecker_factors
from pyro_scale.curvature.jacobian import Linearised
from pyro_scale.gaussians.kronecker import Block, KroneckerGaussian
from pyro_scale.kernels.laplace import (
    Approximation,
    Sites,
    check_settings,
    chosen_sites,
    info_of,
    of_all_rows,
    positive,
    prior_curvature,
    with_held,
)
from pyro_scale.kernels.map import MAP
from pyro_scale.types import BoundKernel, Fitting, Info, Position, Settings

CURVATURES = ("ggn", "fisher")


@dataclass(frozen=True)
class KroneckerLaplace:
    """Settings of Laplace's approximation with Kronecker factors; memory of two matrices a layer.

    Linear layers, convolutions and embeddings are found in modules and in plain code, as `x @ w`. Sites that no layer
    uses have a dense block up to 64 coordinates, beyond it a diagonal.

    Args:
        curvature: of the log-likelihood: "ggn", the generalised Gauss-Newton matrix, or "fisher", the empirical Fisher
            information.
        sites: names or patterns of the latent sites that are normal, as "4.*" for a last layer; the others are held at
            the mode. None for all.
        temperature: the posterior to the power 1 / temperature is approximated; > 0.
        optimizer: what finds the mode: `MAP` with its settings.

    Raises:
        ArgumentError: a setting is out of its range.

    Example:
        >>> import pyro.distributions as dist
        >>> import pyro_scale as ps
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8, device="meta"), torch.nn.Tanh())
        >>> model = ps.bayesian(net, prior=dist.Normal(0.0, 1.0), likelihood=lambda out: dist.Normal(out.sum(-1), 1.0))
        >>> data = {"x": torch.ones(5, 2), "y": torch.ones(5)}
        >>> posterior = ps.infer(model, data, "laplace_kfac", num_samples=10, seed=0)
        >>> [tuple(basis.shape) for basis in posterior.approximation.blocks["0.weight"].bases]
        [(8, 8), (2, 2)]
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
        return chosen_sites("KroneckerLaplace", self.sites, position)

    def bind(self, target: Any, num_data: int) -> BoundKernel:
        """Joins the settings to a target over `num_data` rows."""
        return BoundKernel(
            noise_shape=lambda position: (),
            init=partial(init, self.sites),
            update=partial(update, target, self.curvature, {}),
            approximation=lambda state: self.approximate(target, num_data, state).gaussian,
        )

    def approximate(self, target: Any, num_data: int, state: KroneckerLaplaceState) -> Approximation:
        """The normal distribution around the position of a state that has seen some rows, best all."""
        mean = {name: state.position[name] for name in state.names}
        prior = tree.unravel(prior_curvature(target, state.position, state.names).diagonal(), tree.shapes(mean))
        scale = of_all_rows(num_data, state.rows)
        blocks = {name: block(state.factors, name, leaf, scale, prior[name]) for name, leaf in mean.items()}
        precision, clamped = positive("KroneckerLaplace", {name: one.eigenvalues for name, one in blocks.items()})
        blocks = {name: Block(one.bases, precision[name] / self.temperature) for name, one in blocks.items()}
        return Approximation(with_held(KroneckerGaussian(mean, blocks), state.position), clamped)


class KroneckerLaplaceState(NamedTuple):
    """A position, the chosen sites, the factors of the rows seen so far, and how many they were."""

    position: Position
    names: list[str]
    factors: Factors
    rows: Tensor


def init(sites: Sites, position: Position, noise: Any) -> KroneckerLaplaceState:
    """At a mode, no row seen yet."""
    names = chosen_sites("KroneckerLaplace", sites, position)
    return KroneckerLaplaceState(position, names, Factors({}, {}, {}, {}), torch.zeros((), dtype=torch.long))


def update(
    target: Any,
    curvature: str,
    known: dict[Any, frozenset[str]],
    state: KroneckerLaplaceState,
    batch: Any,
    noise: Any,
    settings: Settings,
) -> tuple[KroneckerLaplaceState, Info]:
    """Adds the factors of some rows; the position stays."""
    linearised = Linearised(target, curvature, state.position, state.names, batch, known=known)
    added = state.factors + kronecker_factors(linearised)
    return state._replace(factors=added, rows=state.rows + len(batch.indices)), info_of(linearised.clamped)


def block(found: Factors, name: str, leaf: Tensor, scale: float, prior: Tensor) -> Block:
    """Of one site: the rows' part, and the prior's in its eigenvectors."""
    if name not in found.first:
        return Block((), scale * found.diagonal.get(name, torch.zeros_like(leaf)) + prior)
    matrices = [found.first[name]]
    if name in found.second:
        matrices.append(found.second[name] / found.places[name].to(leaf))
    spectra = [torch.linalg.eigh(matrix) for matrix in matrices]
    values = [one.eigenvalues.clamp(min=0) for one in spectra]
    total = scale * (values[0] if len(values) == 1 else values[0][:, None] * values[1])
    bases = tuple(one.eigenvectors for one in spectra)
    return Block(bases, total + _in_bases(prior.reshape(total.shape), bases))


def _in_bases(diagonal: Tensor, bases: Iterable[Tensor]) -> Tensor:
    """Diagonal of Q' diag Q."""
    if bool((diagonal == diagonal.flatten()[0]).all()):
        return diagonal
    for axis, basis in enumerate(bases):
        diagonal = (diagonal.movedim(axis, -1) @ basis.square()).movedim(-1, axis)
    return diagonal
