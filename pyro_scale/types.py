"""Types that kernels, models and the runner share. Nothing here computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

Position: TypeAlias = dict[str, Tensor]
"""Unconstrained value of every latent site, keyed by its Pyro name."""

Noise: TypeAlias = Any
"""Tree of standard normals of the shapes that `BoundKernel.noise_shape` asked for; `()` for none."""

Schedule: TypeAlias = Callable[[int], float]
"""Value of a setting at a step, counted from 0."""


class Anchor(NamedTuple):
    """A position at which the log posterior of all rows and its gradient are known; leaves as those of a position.

    Attributes:
        position: where it is, in the coordinates of the target.
        gradient: of the log posterior of all rows, there.
        log_posterior: of all rows, in nats; 0-d.
    """

    position: Position
    gradient: Position
    log_posterior: Tensor


class Batch(NamedTuple):
    """Rows of the data, and the factor that makes their log-likelihood estimate that of all rows.

    Attributes:
        data: model argument -> its rows, `(n, ...)`; `(num_chains, n, ...)` where each chain has rows of its own.
        indices: which rows, `(n,)` or `(num_chains, n)`.
        scale: N / n, set by `CompiledModel.batch` and read by everything else.
        anchor: of control variates, `()` without; one a chain in a step of all chains, whose rows a loader shares.
    """

    data: dict[str, Tensor]
    indices: Tensor
    scale: float
    anchor: Anchor | tuple[()] = ()


class Information(NamedTuple):
    r"""An observed site's outputs, the free parameters $\eta$ of its distribution, and what it tells about them.

    Attributes:
        outputs: `(n, elements, k)`: for each row, and each of the numbers that it observes, those that latent sites
            move; differentiable in the position.
        root: S with $S S^\top$ Fisher's information in them, `(n, elements, k, r)`.
        clamped: how many eigenvalues of it were negative and were set to 0; 0-d.
    """

    outputs: Tensor
    root: Tensor
    clamped: Tensor


class LogPosterior(Protocol):
    """A target: an unbiased estimate, in nats, of the full log posterior density of the unconstrained position."""

    def __call__(self, position: Position, batch: Any, /) -> Tensor: ...


class CurvatureTarget(Protocol):
    """A target whose log-likelihood is known by row, as curvature needs it."""

    def log_prior(self, position: Position, /) -> Tensor: ...

    def log_likelihood(self, position: Position, batch: Batch, /) -> dict[str, Tensor]: ...

    def information(self, position: Position, batch: Batch, /) -> dict[str, Information]: ...


class Settings(NamedTuple):
    """What may change from step to step, evaluated ahead by the runner; scalars or 0-d tensors.

    Attributes:
        step_size: of this step.
        temperature: of this step.
        adapting: 1 in warm-up, when a kernel may adapt itself to the target; 0 from then on.
    """

    step_size: Any
    temperature: Any
    adapting: Any = 0.0


class Info(NamedTuple):
    """What diagnostics need of one step.

    Attributes:
        log_posterior: the (minibatch) log posterior at the position the step started from, in nats.
        clamped: number of coordinates whose injected noise variance would have been negative and was set to 0.
    """

    log_posterior: Tensor
    clamped: Tensor


@dataclass(frozen=True)
class BoundKernel:
    """A kernel's settings joined to a target: three pure functions.

    Attributes:
        noise_shape: `(position) -> tree of torch.Size`, the standard normals that one `init` or `update` takes.
        init: `(position, noise) -> state`.
        update: `(state, batch, noise, settings) -> (state, info)`.
        approximation: `(state) -> Gaussian`, of a method whose result is a normal distribution; None for others.
        move: `(state, gradient, noise, settings) -> (state, clamped)`, what `update` does with the gradient of the log
            posterior at `state.position`; pure, too. Each coordinate moves by itself, and all fields of the state are
            keyed by site: it is called with 1-d parts of all trees, and so a large state moves part by part, in
            place. None where coordinates move together; the state then moves whole.
    """

    noise_shape: Callable[[Position], Any]
    init: Callable[[Position, Noise], Any]
    update: Callable[[Any, Any, Noise, Settings], tuple[Any, Info]]
    approximation: Callable[[Any], Gaussian] | None = None
    move: Callable[[Any, Position, Noise, Settings], tuple[Any, Tensor]] | None = None


class Fitting(NamedTuple):
    """How a kernel is run whose result is where it ends, and not the positions on its way.

    Attributes:
        num_fits: how many are run side by side, each from a start of its own and to a draw of its own.
        num_particles: positions that one fit moves together, the leading axis of its position; 0 for one without.
        from_mode: whether it starts at the mode above its start, where Newton's method finds one.
        done_at_mode: whether it has nothing to add there.
        scaled, whitened: whether it moves in coordinates scaled by the curvature at the mode to 1 per datum each, or
            whitened to 1 in all directions.
        minibatches: whether it needs them.
        local: whether it can hold values of each row of minibatches.
        optimizer: from parameters to the optimizer of torch that takes its steps in its place; None for its own.
        one_pass: whether it takes in every row once, from the mode of the prior.
    """

    num_fits: int = 1
    num_particles: int = 0
    from_mode: bool = False
    done_at_mode: bool = False
    scaled: bool = False
    whitened: bool = False
    minibatches: bool = False
    local: bool = False
    optimizer: Callable[[Any], Any] | None = None
    one_pass: bool = False


class Kernel(Protocol):
    """Settings of an algorithm: a frozen dataclass. `step_size` None is tuned, or its `default_step_size`.

    A kernel may have a `max_step_size`, above which its step makes no sense; no step of a schedule may pass it. One
    that does not sample has `fitting(num_chains) -> Fitting`: its draws are of its bound kernel's `approximation`, or
    the position it ends at. It may have `objective(target)`, what it climbs if not the log posterior, `at_mode`, the
    kernel for the curvature at the mode, and `at_batches`, the kernel for a number of minibatches.
    """

    @property
    def step_size(self) -> float | Schedule | None: ...

    @property
    def temperature(self) -> float | Schedule: ...

    def bind(self, target: LogPosterior, num_data: int) -> BoundKernel: ...


class Gaussian(Protocol):
    r"""A normal distribution of unconstrained positions, $\theta = \mu + F \xi$ with standard normals $\xi$.

    Trees have the leaves of a position, and may have leading axes where that is said.
    """

    @property
    def mean(self) -> Position:
        r"""$\mu$, the position in the middle."""
        ...

    @property
    def log_det(self) -> Tensor:
        r"""$\log \det F F^\top$, of the covariance; 0-d."""
        ...

    def transform(self, noise: Position) -> Position:
        r"""$\mu + F \xi$; leading axes stay."""
        ...

    def spread(self, rows: Position) -> Position:
        r"""$J F$ of the rows of a matrix J, a leading axis of k; the covariance of $J \theta$ is its Gram matrix."""
        ...

    def log_prob(self, position: Position) -> Tensor:
        """Log density, in nats; leading axes stay."""
        ...


Constants: TypeAlias = Mapping[str, Any]
"""Keyword arguments that the model receives whole."""

Shapes: TypeAlias = dict[str, torch.Size]
