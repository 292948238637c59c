"""One row a kernel that fits. A row buys every shared test; and a linear target, whose posterior is known."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.kernels import (
    MAP,
    SVGD,
    SWAG,
    DenseEKF,
    DenseVI,
    DiagonalEKF,
    DiagonalVI,
    Ensemble,
    LowRankVI,
)
from pyro_scale.types import Batch, Position, Settings

NUM_DATA = 30
NOISE, PRIOR = 0.5, 2.0
"""Standard deviations of a row's error, and of each coefficient."""

SITES: dict[str, dict[str, tuple[int, ...]]] = {
    "scalar": {"z": ()},
    "matrix": {"w": (2, 3)},
    "several": {"scale": (), "bias": (2,), "weight": (2, 3)},
}


@dataclass(frozen=True)
class ApproximationCase:
    """What the shared tests need to know of a kernel.

    Attributes:
        kernel: settings with a step size, if it has one.
        state: fields of the State, `position` first.
        gaussian: whether its result is a normal distribution.
        shared: whether all coordinates enter its covariance, so that it is right where they are correlated.
        positive, non_negative, count, flag: names of the settings, by what they take: a positive number, one from 0, a
            whole number, True or False; None is admitted for `optional`.
        least: smallest of the counts.
        other: settings of other types.
    """

    kernel: Any
    state: tuple[str, ...]
    gaussian: bool = True
    positive: tuple[str, ...] = ()
    non_negative: tuple[str, ...] = ()
    count: tuple[str, ...] = ()
    flag: tuple[str, ...] = ()
    other: tuple[str, ...] = ()
    least: int = 1

    @property
    def name(self) -> str:
        return type(self.kernel).__name__

    @property
    def particles(self) -> int:
        found: int = self.kernel.fitting(1).num_particles
        return found


VARIATIONAL: dict[str, Any] = {
    "positive": ("step_size",),
    "non_negative": ("temperature",),
    "flag": ("stick_the_landing",),
    "other": ("initial_sd",),
}
CASES = [
    ApproximationCase(
        MAP(step_size=0.1),
        state=("position", "optimizer"),
        gaussian=False,
        positive=("step_size",),
        flag=("prior",),
        other=("optimizer",),
    ),
    ApproximationCase(
        Ensemble(step_size=0.1),
        state=("position", "optimizer"),
        gaussian=False,
        positive=("step_size",),
        flag=("prior",),
        other=("optimizer",),
    ),
    ApproximationCase(
        DiagonalVI(step_size=0.1, num_particles=3),
        state=("position", "log_sd", "mean_moments", "sd_moments", "num_steps"),
        count=("num_particles",),
        **VARIATIONAL,
    ),
    ApproximationCase(
        DenseVI(step_size=0.1, num_particles=2),
        state=("position", "factor", "mean_moments", "factor_moments", "num_steps"),
        count=("num_particles",),
        **VARIATIONAL,
    ),
    ApproximationCase(
        LowRankVI(step_size=0.1, rank=2),
        state=(
            "position", "log_scale", "columns", "mean_moments", "scale_moments", "column_moments", "num_steps",
        ),
        count=("num_particles", "rank"),
        **VARIATIONAL,
    ),
    ApproximationCase(
        SWAG(step_size=0.1, rank=3, collect_every=1),
        state=("position", "mean", "squares", "columns", "num_collected", "num_steps"),
        positive=("step_size",),
        count=("rank", "collect_every"),
        least=2,
    ),
    ApproximationCase(
        SVGD(step_size=0.1, num_particles=5),
        state=("position", "moments", "num_steps"),
        gaussian=False,
        positive=("step_size",),
        non_negative=("temperature",),
        count=("num_particles",),
    ),
    ApproximationCase(
        DiagonalEKF(transition_sd=0.1),
        state=("position", "variance"),
        positive=("temperature",),
        non_negative=("transition_sd",),
    ),
    ApproximationCase(
        DenseEKF(transition_sd=0.1),
        state=("position", "precision"),
        positive=("temperature",),
        non_negative=("transition_sd",),
    ),
]  # fmt: skip


class Linear:
    """Normal rows whose mean is linear in all coordinates, all with one prior: a target with all of its functions."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype = torch.float64) -> None:
        self.shapes = {name: torch.Size(shape) for name, shape in shapes.items()}
        generator, size = torch.Generator().manual_seed(3), sum(shape.numel() for shape in self.shapes.values())
        x = torch.randn(NUM_DATA, size, generator=generator, dtype=torch.float64)
        # correlated, and of unequal scales
        x = (x + 0.7 * x[:, :1]) * torch.logspace(-0.5, 0.5, size, dtype=torch.float64)
        y = x.sum(1) + NOISE * torch.randn(NUM_DATA, generator=generator, dtype=torch.float64)
        self.x, self.y = x.to(dtype), y.to(dtype)

    def batch(self, rows: slice = slice(None)) -> Batch:
        x = self.x[rows]
        return Batch({"x": x, "y": self.y[rows]}, torch.arange(len(x)), NUM_DATA / len(x))

    def exact(self) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the posterior, by the normal equations."""
        x, y = self.x.double(), self.y.double()
        precision = x.T @ x / NOISE**2 + torch.eye(x.shape[1], dtype=torch.float64) / PRIOR**2
        return torch.linalg.solve(precision, x.T @ y) / NOISE**2, torch.linalg.inv(precision)

    def evidence(self) -> float:
        """Log density of all rows, by their joint normal."""
        x, y = self.x.double(), self.y.double()
        covariance = PRIOR**2 * x @ x.T + NOISE**2 * torch.eye(len(y), dtype=torch.float64)
        normal = torch.distributions.MultivariateNormal(torch.zeros_like(y), covariance)
        return float(normal.log_prob(y))

    def __call__(self, position: Position, batch: Batch) -> Tensor:
        return self.log_prior(position) + batch.scale * self.log_likelihood(position, batch)["obs"].sum()

    def log_prior(self, position: Position) -> Tensor:
        vector = tree.ravel(position) / PRIOR
        return -(vector**2 + math.log(2 * math.pi * PRIOR**2)).sum() / 2

    def log_likelihood(self, position: Position, batch: Batch) -> dict[str, Tensor]:
        return self.output_log_prob(self.outputs(position, batch), batch)

    def outputs(self, position: Position, batch: Batch) -> dict[str, dict[str, Tensor]]:
        return {"obs": {"loc": batch.data["x"] @ tree.flat(position, self.shapes)}}

    def output_log_prob(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        away = (batch.data["y"] - outputs["obs"]["loc"]) / NOISE
        return {"obs": -(away**2 + math.log(2 * math.pi * NOISE**2)) / 2}


def drawn(shapes: Any, seed: int, *leading: int, dtype: torch.dtype = torch.float64) -> Position:
    """Standard normals, a leaf for each shape."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn((*leading, *shape), generator=generator, dtype=torch.float64).to(dtype)
        for name, shape in shapes.items()
    }


def settings_of(kernel: Any) -> Settings:
    """What the runner hands over."""
    return Settings(kernel.step_size, kernel.temperature, 1.0)


def started(case: ApproximationCase, target: Linear, dtype: torch.dtype = torch.float64) -> tuple[Any, Any]:
    """The bound kernel, and a state from a random position."""
    bound = case.kernel.bind(target, NUM_DATA)
    leading = (case.particles,) if case.particles else ()
    position = drawn(target.shapes, 0, *leading, dtype=dtype)
    return bound, bound.init(position, drawn(bound.noise_shape(position), 1, dtype=dtype))
