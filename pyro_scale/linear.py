r"""The linearised model: the distribution's parameters of every row as a normal distribution of their own.

With f the parameters of a row's distribution, without bounds, as a function of the position $\theta$, and a posterior
$\theta \sim N(\mu, F F^\top)$,

$$f(\theta) \approx f(\mu) + J (\theta - \mu), \qquad f \sim N(f(\mu), \, J F (J F)^\top),$$

where J is the Jacobian at $\mu$: Khan, Immer, Abedi & Korzepa (2019); Immer, Korzepa & Bauer (2021), section 3. Only
J F is ever made, for a block of rows at a time.

References:
    Khan, Immer, Abedi & Korzepa (2019), Approximate inference turns deep networks into Gaussian processes, NeurIPS.
    Immer, Korzepa & Bauer (2021), Improving predictions of Bayesian neural nets via local linearization, AISTATS.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import jacrev

from pyro_scale import tree
from pyro_scale.compile import CompiledModel
from pyro_scale.draws import over_draws
from pyro_scale.errors import ModelError
from pyro_scale.gaussians import gram
from pyro_scale.handlers import FromPosition, run
from pyro_scale.prediction import axis_of_rows
from pyro_scale.records import PyroSite
from pyro_scale.types import Gaussian, Position
from pyro_scale.unbounded import logits_as_written, natural, without_bounds


class Part(NamedTuple):
    """Where a parameter is among the numbers of a row.

    Attributes:
        parameter: its name.
        shape: of one row's, the axis of the rows included.
        columns: where its numbers are.
    """

    parameter: str
    shape: torch.Size
    columns: slice


@dataclass(frozen=True)
class SiteFunction:
    """What latent sites move of an observed site's distribution, at n rows: k numbers a row, normally distributed.

    Attributes:
        parts: the parameters.
        axis: of the site's values which follows the rows, from the left.
        mean: `(n, k)`.
        covariance: `(n, k, k)`; `(n, k)` are variances alone.
    """

    parts: list[Part]
    axis: int
    mean: Tensor
    covariance: Tensor

    @property
    def variance(self) -> Tensor:
        """`(n, k)`."""
        return self.covariance if self.covariance.ndim == 2 else self.covariance.diagonal(dim1=1, dim2=2)

    def by_parameter(self, numbers: Tensor) -> dict[str, Tensor]:
        """Parameter -> `(n, k)` numbers in its own shape for n rows."""
        parts = split(self.parts, numbers)
        return {name: along_rows(value, self.axis) for name, value in parts.items()}


def split(parts: list[Part], numbers: Tensor) -> dict[str, Tensor]:
    """Parameter -> `(..., k)` numbers in the shape of one row's; leading axes stay."""
    leading = numbers.shape[:-1]
    return {part.parameter: numbers[..., part.columns].reshape(*leading, *part.shape) for part in parts}


def along_rows(values: Tensor, axis: int, leading: int = 0) -> Tensor:
    """Values of single rows, `(n, *shape)` behind `leading` axes, with the rows along an axis of the shape."""
    return values.movedim(leading, leading + axis).squeeze(leading + axis + 1)


def functions(compiled: CompiledModel, gaussian: Gaussian, *, diagonal: bool = False) -> dict[str, SiteFunction]:
    """Observed site -> what the posterior says of its distribution's parameters at the rows of `compiled`.

    Args:
        compiled: the model on these rows; observations may be missing.
        gaussian: the posterior of all latent sites, unconstrained.
        diagonal: variances alone, in place of the covariance of a row's numbers.

    Raises:
        ModelError: latent sites follow the rows or are discrete, rows depend on each other, the distribution's
            parameters cannot be told, or depend on an observation.
    """
    check_linear(compiled)
    first = tree.map(lambda leaf: leaf[:1], compiled.data.rows)
    parts, axes = _parts(compiled, gaussian, first)
    moved = {name: [part.parameter for part in found] for name, found in parts.items()}

    moving = getattr(gaussian, "gaussian", gaussian)  # of sites that others are held beside

    def of_row(row: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        rows = tree.map(lambda leaf: leaf.unsqueeze(0), row)

        def numbers(position: Position) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            sites = row_sites(compiled, {**gaussian.mean, **position}, rows)
            found = {name: _numbers(sites[name], moved[name]) for name in moved}
            return found, found

        jacobians, values = jacrev(numbers, has_aux=True)(moving.mean)
        covariance = _variances if diagonal else gram
        return {name: (value, covariance(moving.spread(jacobians[name]))) for name, value in values.items()}

    size = sum(part.shape.numel() for found in parts.values() for part in found) * tree.size(moving.mean)
    result = over_draws(of_row, compiled.data.rows, num_rows=max(1, size))
    found = {name: SiteFunction(parts[name], axes[name], *result[name]) for name in parts}
    for name, function in found.items():
        _check_finite(name, function)
    return found


def row_sites(compiled: CompiledModel, position: Position, rows: Mapping[str, Tensor]) -> dict[str, PyroSite]:
    """The model's sites at a position; observed ones have no value, and what was observed, or None, under "given"."""
    observed = {site.name for site in compiled.structure.of_kind("observed")}
    with logits_as_written():
        return run(compiled.model, compiled.data, rows, _Unseen(position, observed), sample_discrete=True).sites


class _Unseen(FromPosition):
    """Latent values of a position; observed sites have NaN, which tells where something depends on them."""

    def __init__(self, position: Position, observed: Collection[str]) -> None:
        super().__init__(position)
        self.observed = observed

    def _pyro_sample(self, msg: PyroSite) -> None:
        if msg["name"] not in self.observed:
            super()._pyro_sample(msg)
            return
        msg["given"] = msg["value"]
        msg["value"] = torch.full(msg["fn"].shape(), torch.nan)


def _numbers(site: PyroSite, moved: list[str]) -> Tensor:
    """`(k,)`."""
    return torch.cat([value.reshape(-1) for value in without_bounds(site, moved).values()])


def _variances(rows: Position) -> Tensor:
    return torch.stack([leaf.flatten(1).square().sum(1) for leaf in rows.values()]).sum(0)


def _parts(
    compiled: CompiledModel, gaussian: Gaussian, row: Mapping[str, Tensor]
) -> tuple[dict[str, list[Part]], dict[str, int]]:
    """Observed site -> the parameters that latent sites move, and the axis of the rows; as seen at one row."""
    with torch.enable_grad():
        held = getattr(gaussian, "held", {})
        position = {
            name: leaf.detach().clone().requires_grad_(name not in held) for name, leaf in gaussian.mean.items()
        }
        sites = row_sites(compiled, position, row)
    parts: dict[str, list[Part]] = {}
    axes = {}
    for site in compiled.structure.of_kind("observed"):
        if site.name not in sites:
            raise ModelError(
                f"The model has no site '{site.name}' without observations, so it cannot be predicted. Let the model "
                "sample it with obs=None too, or pass observations along with the rows."
            )
        record, first = sites[site.name], 0
        moved = [name for name, value in natural(record).items() if value.requires_grad]
        for name, value in without_bounds(record, moved).items():
            columns = slice(first, first + value.numel())
            parts.setdefault(site.name, []).append(Part(name, value.shape, columns))
            first = columns.stop
        if site.rows is not None:
            axes[site.name] = axis_of_rows(record, site.rows)
    if not parts:
        raise ModelError("No parameter of an observed site's distribution depends on a latent site.")
    return parts, axes


def check_linear(compiled: CompiledModel) -> None:
    """Raises `ModelError` where a row's parameters are no function of the global sites and that row."""
    if (reason := compiled.structure.minibatch_error) is not None:
        raise ModelError(f"Rows depend on each other, so that none can be linearised by itself: {reason}")
    for site in compiled.structure.of_kind("latent", "enumerated"):
        if site.local or site.kind == "enumerated":
            what = "is discrete" if site.kind == "enumerated" else "has a value for each row"
            raise ModelError(
                f"Site '{site.name}' {what}, so that the observations' distribution is no function of the other "
                "sites. Use linearized=False."
            )
    for site in compiled.structure.of_kind("observed"):
        if site.rows is None:
            raise ModelError(f"Site '{site.name}' is observed once, not for each row. Use linearized=False.")


def _check_finite(name: str, function: SiteFunction) -> None:
    if not bool(function.mean.isfinite().all()):
        row = int((~function.mean.isfinite()).any(1).nonzero()[0])
        raise ModelError(
            f"The parameters of site '{name}' are not finite in row {row} at the posterior's mean. They overflow, or "
            "depend on an observation. Use linearized=False."
        )
