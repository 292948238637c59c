r"""Values of rows given what all rows share: mode and curvature, and what is left of the posterior without them.

With $\theta$ what is shared and $z_i$ the k values of row i, the log posterior $\ell(\theta, z)$ has a Hessian in z
that is one block $-H_i$ a row. Where $\hat z(\theta)$ is the mode in z, Laplace's approximation of the marginal is

$$\log p(\theta) \approx \ell(\theta, \hat z(\theta)) - \frac T 2 \sum_i \log \det H_i(\theta, \hat z_i(\theta))$$

at temperature T, but for a constant: Tierney & Kadane (1986), as in Rue, Martino & Chopin (2009). It has a mode where
the joint density has none: that rises without end where values a row are all equal and their sd is 0.

References:
    Rue, Martino & Chopin (2009), Approximate Bayesian inference for latent Gaussian models by using integrated nested
    Laplace approximations, Journal of the Royal Statistical Society B.
    Tierney & Kadane (1986), Accurate approximations for posterior moments and marginal densities, Journal of the
    American Statistical Association.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, vjp

from pyro_scale import tree
from pyro_scale.compile import CompiledModel
from pyro_scale.derivative import is_inside
from pyro_scale.spread import factor_of_inverse
from pyro_scale.starts import LinAlgError
from pyro_scale.types import Position

MOST_STEPS = 100
SETTLED = {torch.float64: 1e-6, torch.float32: 3e-4}
"""Standard deviations that are left to go at a mode; of what rounding leaves, a float32 cannot see less."""


class Layout:
    """Values of sites that follow the rows, as a matrix `(..., rows, k)` and back.

    Args:
        shapes: site -> shape of its value.
        axes: site -> axis of the value that follows the rows.
    """

    def __init__(self, shapes: Mapping[str, torch.Size], axes: Mapping[str, int]) -> None:
        self.axes = dict(axes)
        self.rest = {name: _without(shapes[name], axis) for name, axis in axes.items()}
        self.sizes = [math.prod(rest) for rest in self.rest.values()]

    @property
    def k(self) -> int:
        """Values a row."""
        return sum(self.sizes)

    def matrix(self, leaves: Position) -> Tensor:
        """Leading axes stay."""
        parts = []
        for name, axis in self.axes.items():
            leaf, last = leaves[name], len(self.rest[name]) + 1
            moved = leaf.movedim(axis - last, -last)
            parts.append(moved.reshape(*moved.shape[: moved.ndim - last + 1], -1))
        return torch.cat(parts, -1)

    def leaves(self, matrix: Tensor) -> Position:
        """The inverse of `matrix`."""
        found = {}
        for (name, axis), part in zip(self.axes.items(), matrix.split(self.sizes, -1), strict=True):
            rest = self.rest[name]
            last = len(rest) + 1
            found[name] = part.reshape(*part.shape[:-1], *rest).movedim(-last, axis - last)
        return found


class Expansion(NamedTuple):
    r"""How rows follow what is shared, to first order: $z = \hat z + M \delta + S e^{\sigma \delta} u$.

    Attributes:
        shared: where, `(d,)`; $\delta$ is counted from it.
        center: $\hat z$, `(rows, k)`.
        slope: $M = d \hat z / d \theta$, `(rows, k, d)`.
        factor: S, lower triangle with $S S^\top = H^{-1}$, `(rows, k, k)`.
        widening: $\sigma$, of the logarithm of the diagonal of S, `(rows, k, d)`.
    """

    shared: Tensor
    center: Tensor
    slope: Tensor
    factor: Tensor
    widening: Tensor


class Conditional:
    """Rows of a model given what they share, in unconstrained coordinates; that a vector in the order of `shapes`.

    Args:
        compiled: a model with sites that follow the rows.
        temperature: T > 0.
        values: `(rows, k)`, from where modes are sought; later from the last that was found.
    """

    def __init__(self, compiled: CompiledModel, temperature: float, values: Tensor) -> None:
        self.compiled = compiled
        self.temperature = temperature
        self.values = values
        self.batch = compiled.batch()
        self.layout = Layout(compiled.latent, compiled.local)
        self.shapes = {name: shape for name, shape in compiled.latent.items() if name not in compiled.local}

    def __call__(self, shared: Position, batch: Any) -> Tensor:
        """Laplace's approximation of the marginal log posterior of what is shared; it has two derivatives.

        The second leaves out a term of order one a row where the third derivative in the rows is not 0.

        Raises:
            LinAlgError: rows have no mode that Newton's method could find.
        """
        vector = torch.cat([shared[name].reshape(-1) for name in self.shapes])
        center, precision = self._followed(vector, self.mode(vector.detach()))
        value: Tensor = (
            self.log_density(vector, center) - self.temperature / 2 * torch.linalg.slogdet(precision)[1].sum()
        )
        return value

    def log_density(self, shared: Tensor, values: Tensor) -> Tensor:
        """Of all rows."""
        position = {**tree.unravel(shared, self.shapes), **self.layout.leaves(values)}
        value: Tensor = self.compiled({name: position[name] for name in self.compiled.latent}, self.batch)
        return value

    def slopes(self, shared: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient in the values, `(rows, k)`, and negative Hessian of each row, `(rows, k, k)`."""

        def slopes(values: Tensor) -> Tensor:
            found: Tensor = grad(lambda at: self.log_density(shared, at))(values)
            return found

        found: Any = vjp(slopes, values)
        slope, product = found
        columns = torch.eye(values.shape[1], dtype=values.dtype, device=values.device)
        return slope, -torch.stack([product(column.expand_as(slope))[0] for column in columns], 1)

    @torch.no_grad()
    def mode(self, shared: Tensor) -> Tensor:
        """Of all rows, `(rows, k)`, by Newton's method; a row that went too far goes a quarter of the way.

        Raises:
            LinAlgError: it finds none.
        """
        values, settled = self.values.to(shared), SETTLED.get(shared.dtype, 1e-2)
        step, before = torch.zeros_like(values), torch.zeros_like(values[:, 0])
        slope, precision = self.slopes(shared, values)
        for _ in range(MOST_STEPS):
            new_slope, new_precision = self.slopes(shared, values + step)
            far = ~((new_slope * step).sum(-1) >= -before - settled**2) | ~new_precision.isfinite().all(-1).all(-1)
            values = torch.where(far[:, None], values, values + step)
            slope = torch.where(far[:, None], slope, new_slope)
            precision = torch.where(far[:, None, None], precision, new_precision)
            if not bool(slope.isfinite().all() & precision.isfinite().all()):
                break
            newton, positive = _newton(slope, precision)
            step = torch.where(far[:, None], step / 4, newton)
            before = (slope * step).sum(-1)
            if bool(before.max() < settled**2) and positive and not bool(far.any()):
                if not is_inside(values):
                    self.values = values
                return values
        raise LinAlgError("values of rows have no mode")

    def expansion(self, shared: Tensor) -> Expansion:
        """At what is shared, `(d,)`."""
        values, shape = self.mode(shared), (*self.values.shape, len(shared))

        def followed(at: Tensor) -> Tensor:
            center, precision = self._followed(at, values)
            factor = factor_of_inverse(precision)
            return torch.stack([center, factor.diagonal(dim1=-2, dim2=-1).log()])

        with torch.enable_grad():
            here = shared.detach().requires_grad_()
            found = followed(here) + 0 * here.sum()  # rows may not depend on it
            weights = torch.ones_like(found).requires_grad_()
            (weighted,) = torch.autograd.grad(found, here, weights, create_graph=True)  # linear in the weights
            columns = [torch.autograd.grad(one, weights, retain_graph=True)[0] for one in weighted]
        slope, widening = torch.stack(columns, -1)
        _, precision = self.slopes(shared, values)
        factor = factor_of_inverse(precision)
        assert slope.shape == shape
        return Expansion(shared.detach(), values, slope, factor.detach(), widening)

    def _followed(self, shared: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The mode near where it is known to be, one step of Newton's method away, and the precision there."""
        slope, precision = self.slopes(shared, values)
        center = values + torch.linalg.solve(precision, slope.unsqueeze(-1)).squeeze(-1)
        return center, self.slopes(shared, center)[1]


def _newton(slope: Tensor, precision: Tensor) -> tuple[Tensor, bool]:
    """Newton's step of each row, with absolute eigenvalues, and whether all are positive."""
    eigenvalues, basis = torch.linalg.eigh(precision)
    numbers = torch.finfo(slope.dtype)
    least = (numbers.eps * eigenvalues.abs().amax(-1, keepdim=True)).clamp(min=numbers.tiny)
    along = (basis.mT @ slope.unsqueeze(-1)) / eigenvalues.abs().maximum(least).unsqueeze(-1)
    return (basis @ along).squeeze(-1), bool((eigenvalues > least).all())


def _without(shape: torch.Size, axis: int) -> tuple[int, ...]:
    return tuple(size for place, size in enumerate(shape) if place != axis % len(shape))
