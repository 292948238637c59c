"""The log posterior of all rows and its derivatives, a block of rows at a time; the spectrum of its curvature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad, vmap

from pyro_scale import tree
from pyro_scale.compile import CompiledModel
from pyro_scale.derivative import grad_and_value
from pyro_scale.starts import LinAlgError
from pyro_scale.types import Batch, LogPosterior, Position, Shapes

BLOCK_ROWS = 65_536
BLOCK_NUMBERS = 2**24
"""Rows times directions that are differentiated side by side."""


def row_blocks(compiled: CompiledModel) -> list[Batch]:
    """All rows once, in blocks where the model allows: `log_posterior / scale` sums over them to that of all rows.

    With a latent value for each row a position is as long as the rows, and they come at once.
    """
    if compiled.structure.minibatch_error is not None or compiled.local:
        return [compiled.batch()]
    return [compiled.batch(block) for block in torch.arange(compiled.num_data).split(BLOCK_ROWS)]


FEW = 30
"""Rows of a Hessian that are computed one by one: for more at once torch imports what it has for symbolic shapes."""


class AllRows:
    """The log posterior of all rows as a function of the raveled position.

    Args:
        target: the log posterior.
        batches: all rows once, as from `row_blocks`.
        like: an example of a position.
    """

    def __init__(self, target: LogPosterior, batches: Sequence[Batch], like: Position) -> None:
        self.shapes: Shapes = tree.shapes(like)
        self.terms = [self._term(target, batch) for batch in batches]
        self.directions = max(1, BLOCK_NUMBERS // max(len(batch.indices) for batch in batches))

    def _term(self, target: LogPosterior, batch: Batch) -> Callable[[Tensor], Tensor]:
        return lambda vector: target(tree.unravel(vector, self.shapes), batch) / batch.scale

    def value(self, vector: Tensor) -> Tensor:
        """In nats; 0-d."""
        with torch.no_grad():
            return torch.stack([term(vector) for term in self.terms]).sum()

    def gradient(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient `(d,)` and value."""
        gradients, values = zip(*(grad_and_value(term)(vector) for term in self.terms), strict=True)
        return torch.stack(gradients).sum(0), torch.stack(values).sum()

    def negative_hessian(self, vector: Tensor) -> Tensor:
        """`(d, d)`, symmetric."""
        total = torch.zeros(len(vector), len(vector), dtype=vector.dtype, device=vector.device)
        for term in self.terms:
            total -= self._hessian(term, vector)
        return (total + total.T) / 2

    def _hessian(self, term: Callable[[Tensor], Tensor], vector: Tensor) -> Tensor:
        """By autograd itself: `torch.func.jacrev` would import torch's compiler, which takes a second."""
        basis = torch.eye(len(vector), dtype=vector.dtype, device=vector.device)
        with torch.enable_grad():
            here = vector.detach().requires_grad_()
            (slope,) = torch.autograd.grad(term(here), here, create_graph=True)

            if not slope.requires_grad:  # the log posterior is a linear function
                return torch.zeros_like(basis)
            if len(basis) > FEW:
                with suppress(RuntimeError):  # an operation that takes no batch of directions
                    found = [
                        torch.autograd.grad(slope, here, some, retain_graph=True, is_grads_batched=True)[0]
                        for some in basis.split(self.directions)
                    ]
                    return torch.cat(found)
            found = [torch.autograd.grad(slope @ one, here, retain_graph=True)[0] for one in basis]
            return torch.stack(found)

    def negative_hessian_diagonal(self, vector: Tensor) -> Tensor:
        """`(d,)`, exactly, by one Hessian-vector product a coordinate."""
        total = torch.zeros_like(vector)
        for term in self.terms:
            total -= self._diagonal(term, vector)
        return total

    def _diagonal(self, term: Callable[[Tensor], Tensor], vector: Tensor) -> Tensor:
        def entry(index: Tensor) -> Tensor:
            direction = torch.nn.functional.one_hot(index, len(vector)).to(vector)
            slope: Tensor = grad(lambda v: grad(term)(v) @ direction)(vector)
            return slope @ direction

        coordinates = torch.arange(len(vector), device=vector.device)
        try:
            entries: Tensor = vmap(entry, chunk_size=min(64, self.directions))(coordinates)
        except RuntimeError:
            entries = torch.stack([entry(index) for index in coordinates])
        return entries


def negative_hessians(target: LogPosterior, batch: Batch, positions: Position) -> Tensor:
    """At each of a few positions, as rows of a batch estimate them; per datum, `(n, d, d)`.

    Positions without a finite Hessian are left out; there may be none.
    """
    first = {name: leaf[0] for name, leaf in positions.items()}
    rows, found = AllRows(target, [batch], first), [tree.ravel(first).new_zeros(0, tree.size(first), tree.size(first))]
    for index in range(len(next(iter(positions.values())))):
        with suppress(LinAlgError):
            hessian = rows.negative_hessian(tree.ravel({name: leaf[index] for name, leaf in positions.items()}))
            if hessian.isfinite().all():
                found.append(hessian.unsqueeze(0) / len(batch.indices))
    return torch.cat(found)


def largest_curvatures(target: LogPosterior, batch: Batch, positions: Position) -> Tensor:
    """The largest curvature at each of a few positions, in size; otherwise as `negative_hessians`.

    1 where there is no other.
    """
    hessians = negative_hessians(target, batch, positions)
    return torch.linalg.eigvalsh(hessians).abs().amax(1) if len(hessians) else torch.ones(1)


def mean_curvature(hessians: Tensor) -> Tensor:
    r"""The mean of $|H| = V |\Lambda| V^\top$ over Hessians `(n, d, d)` in coordinates that are about right.

    Absolute eigenvalues, as in the metric of Betancourt (2013): directions that bend upwards here and downwards there
    do not look flat. Where the log posterior is concave it is the mean of H, and for draws that is the mean of
    $g g^\top$, g being the gradient. The identity counts as one more, so that no direction is flat, nor any of none.

    Example:
        >>> mean_curvature(torch.tensor([[[2.5]], [[-2.5]]]))
        tensor([[2.]])

    References:
        Betancourt (2013), A general metric for Riemannian manifold Hamiltonian Monte Carlo, Geometric Science of
        Information.
    """
    eigenvalues, basis = torch.linalg.eigh(hessians)
    identity = torch.eye(hessians.shape[1], dtype=hessians.dtype, device=hessians.device)
    total: Tensor = identity + (basis * eigenvalues.abs().unsqueeze(1) @ basis.mT).sum(0)
    return total / (1 + len(hessians))


class Spectrum(NamedTuple):
    r"""A curvature $A = D^{-1} V \Lambda V^\top D^{-1}$, its coordinates first scaled by D to a diagonal of ones.

    The scaling takes out the units of the coordinates: without it a covariate in millions and one in millionths lose
    the smaller eigenvalue to rounding. Eigenvalues too small to be told from 0 are set to the smallest that can be.

    Attributes:
        scale: diagonal of D, `(d,)`.
        eigenvalues: absolute values of the diagonal of the matrix Lambda, `(d,)`.
        basis: V, `(d, d)`; None for a matrix that is diagonal.
        positive: whether A is positive definite, beyond rounding.
    """

    scale: Tensor
    eigenvalues: Tensor
    basis: Tensor | None
    positive: bool

    @classmethod
    def of(cls, curvature: Tensor) -> Spectrum:
        """Of a symmetric matrix `(d, d)`, or of a diagonal `(d,)`. All entries are finite."""
        diagonal = curvature if curvature.ndim == 1 else curvature.diagonal()
        size = diagonal.abs()
        usable = size > torch.finfo(size.dtype).tiny
        scale = torch.where(usable, size, size.max() if bool(usable.any()) else torch.ones_like(size)).rsqrt()
        if curvature.ndim == 1:
            return cls(scale, torch.ones_like(scale), None, bool((diagonal > 0).all() and usable.all()))
        eigenvalues, basis = torch.linalg.eigh(scale[:, None] * curvature * scale)
        least = 10 * len(size) * torch.finfo(size.dtype).eps
        return cls(scale, eigenvalues.abs().clamp(min=least), basis, bool(eigenvalues.min() > least))

    def solve(self, vector: Tensor) -> Tensor:
        r"""$|A|^{-1}$ times a vector."""
        factor, _ = self.factors()
        return factor**2 * vector if self.basis is None else factor @ (factor.T @ vector)

    def factors(self) -> tuple[Tensor, Tensor]:
        r"""L with $L L^\top = |A|^{-1}$, and its inverse; their diagonals where A is diagonal."""
        roots = self.eigenvalues.sqrt()
        if self.basis is None:
            return self.scale / roots, roots / self.scale
        return self.scale[:, None] * self.basis / roots, roots[:, None] * self.basis.T / self.scale
