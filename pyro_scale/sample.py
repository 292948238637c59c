"""The loop: chains step together, draws are kept after warm-up, and trouble stops the run with the draws so far."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils import _pytree as pytree

from pyro_scale import tree
from pyro_scale.capture import fastest
from pyro_scale.compile import CompiledModel
from pyro_scale.data import names_of
from pyro_scale.inputs import Inputs
from pyro_scale.progress import Callback, Reporter
from pyro_scale.types import Batch, BoundKernel, Kernel, Position, Settings

logger = logging.getLogger("pyro_scale")

CONSTRAIN_NUMBERS = 2**24


@dataclass(frozen=True)
class Plan:
    """How long to run and what to keep.

    Attributes:
        num_samples: draws kept by a chain.
        warmup_steps: steps before the first draw can be kept.
        thinning: steps from one kept draw to the next.
        num_chains: chains.
        keep: sites whose draws are kept.
        save_warmup: whether every `thinning`-th position of the warm-up is kept too.
    """

    num_samples: int
    warmup_steps: int
    thinning: int
    num_chains: int
    keep: tuple[str, ...]
    save_warmup: bool = False

    @property
    def num_steps(self) -> int:
        """Steps a chain takes in all."""
        return self.warmup_steps + self.num_samples * self.thinning

    def kept_after(self, step: int) -> bool:
        """Whether the position after this many steps is kept."""
        if step <= self.warmup_steps:
            return self.save_warmup and step % self.thinning == 0
        return (step - self.warmup_steps) % self.thinning == 0


class Chains(NamedTuple):
    """What a run leaves.

    Attributes:
        draws: site -> constrained values, `(num_chains, num_samples, *site)`.
        log_posterior: of each draw on the batch of the step after it, `(num_chains, num_samples)`, in nats.
        warmup: as `draws`, for positions kept in warm-up; None unless asked for.
        num_steps: steps taken by a chain.
        clamped: coordinates whose injected noise was clamped at 0, summed over steps, by chain.
        how: how steps ran, as "captured".
        seconds: of capture and of sampling.
        step_size: of the last step.
        failure: why the run stopped early, if it did.
        failed: whether that was a value that is not finite, rather than somebody's wish.
    """

    draws: dict[str, Tensor]
    log_posterior: Tensor
    warmup: dict[str, Tensor] | None
    num_steps: int
    clamped: Tensor
    how: str
    seconds: dict[str, float]
    step_size: float
    failure: str | None
    failed: bool


def run_chains(
    compiled: CompiledModel,
    kernel: Kernel,
    plan: Plan,
    start: Position,
    seeds: Sequence[int],
    *,
    progress: bool = True,
    callback: Callback | None = None,
) -> Chains:
    """Runs all chains from `start`, whose leaves have a leading chain axis.

    The run ends early, keeping its draws, when a value is not finite, the callback says so, or on Ctrl-C.
    """
    began = time.perf_counter()
    bound = kernel.bind(compiled, compiled.num_data)
    one = tree.map(lambda leaf: leaf[0], start)
    inputs = Inputs(compiled, kernel, bound.noise_shape(one), plan.num_chains, seeds)
    state = vmap(bound.init)(start, inputs.noise(plan.num_chains))
    step, how = _all_chains(compiled, bound, state, inputs)
    capture_seconds = time.perf_counter() - began
    collected = _Collected(plan)
    reporter = Reporter(plan.num_steps, progress, callback)
    began = time.perf_counter()
    try:
        failure, failed = _loop(compiled, plan, inputs, step, state, collected, reporter)
    finally:
        reporter.close()
    seconds = {"capture": capture_seconds, "sample": time.perf_counter() - began}
    last = inputs.step_size(max(0, collected.num_steps - 1))
    draws = constrain(compiled, collected.positions, plan.keep)
    warmup = constrain(compiled, collected.warmup, plan.keep) if plan.save_warmup else None
    log_posterior = torch.stack(collected.values, 1) if collected.values else torch.empty(plan.num_chains, 0)
    return Chains(draws, log_posterior, warmup, collected.num_steps, collected.clamped, how, seconds, last, failure, failed)


class _Collected:
    """Positions kept so far; each waits for its log posterior, which the next step computes."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.positions: list[Position] = []
        self.warmup: list[Position] = []
        self.values: list[Tensor] = []
        self.waiting: Position | None = None
        self.num_steps = 0
        self.clamped = torch.zeros(plan.num_chains, dtype=torch.long)

    def settle(self, value: Tensor) -> None:
        """The log posterior at the position that waits is `value`, and finite."""
        if self.waiting is None:
            return
        if self.num_steps > self.plan.warmup_steps:
            self.positions.append(self.waiting)
            self.values.append(value)
        else:
            self.warmup.append(self.waiting)
        self.waiting = None

    def add(self, position: Position, clamped: Tensor) -> None:
        """One more step was taken and led to `position`."""
        self.num_steps += 1
        self.clamped += clamped.cpu()
        self.waiting = position if self.plan.kept_after(self.num_steps) else None


Step = Callable[..., Any]


def _all_chains(compiled: CompiledModel, bound: BoundKernel, state: Any, inputs: Inputs) -> tuple[Step, str]:
    """The kernel's update over all chains, tried on inputs that use up no random number."""
    indices, noise, settings = inputs.example()
    batch = compiled.batch(indices)
    return fastest(bound.update, (True, indices is not None, True, False), state, batch, noise, settings)


def _loop(
    compiled: CompiledModel,
    plan: Plan,
    inputs: Inputs,
    step: Step,
    state: Any,
    collected: _Collected,
    reporter: Reporter,
) -> tuple[str | None, bool]:
    """Steps until the plan is done; why it ended early, and whether by a value that is not finite."""
    full = compiled.batch() if compiled.batch_size is None else None
    try:
        for indices, noise, settings in inputs.steps(plan.num_steps + 1):
            batch = compiled.batch(indices) if full is None else full
            after, info = step(state, batch, noise, settings)
            if not torch.isfinite(info.log_posterior).all():
                reason = _non_finite(compiled, state.position, batch, info.log_posterior, settings)
                return f"after {collected.num_steps} of {plan.num_steps} steps {reason}", True
            collected.settle(info.log_posterior)
            if collected.num_steps == plan.num_steps:  # this step was for the last draw's log posterior alone
                break
            state = after
            collected.add(state.position, info.clamped)
            if reporter.update(collected.num_steps, len(collected.positions)):
                return f"stopped by the callback after {collected.num_steps} of {plan.num_steps} steps", False
    except KeyboardInterrupt:
        if not collected.positions:
            raise
        return f"interrupted after {collected.num_steps} of {plan.num_steps} steps", False
    return None, False


def _non_finite(
    compiled: CompiledModel, position: Position, batch: Batch, values: Tensor, settings: Settings
) -> str:
    """Names the chain and the site of the first value that is not finite."""
    chain = int((~torch.isfinite(values)).nonzero()[0])
    here = tree.map(lambda leaf: leaf[chain], position)
    bad = [name for name, leaf in here.items() if not torch.isfinite(leaf).all()]
    own = batch if compiled.batch_size is None else compiled.batch(batch.indices[chain])
    reason = f"the position of site {names_of(bad)} is not finite" if bad else compiled.blame(here, own)
    return (
        f"chain {chain} is not finite: {reason}. The usual cause is a step_size too large for "
        f"the curvature: it is {float(settings.step_size):g} here; try a tenth of it, or standardise the covariates."
    )


def constrain(compiled: CompiledModel, positions: list[Position], keep: tuple[str, ...]) -> dict[str, Tensor]:
    """Positions of all chains, one after another, as constrained values `(num_chains, len(positions), *site)`."""
    if not positions:
        return {name: torch.empty(0) for name in keep}
    stacked = {name: torch.stack([position[name] for position in positions], 1) for name in positions[0]}
    num_chains, num_draws = next(iter(stacked.values())).shape[:2]
    rows = tree.map(lambda leaf: leaf.flatten(0, 1), stacked)

    def kept(position: Position) -> dict[str, Tensor]:
        values = compiled.constrain(position)
        return {name: values[name] for name in keep}

    values = over_draws(kept, rows)
    return tree.map(lambda leaf: leaf.unflatten(0, (num_chains, num_draws)), values)


def over_draws(function: Callable[[Position], Any], draws: Position, randomness: str = "error") -> Any:
    """`function` of every draw along the leading axis: vectorised in blocks of bounded memory, or one by one."""
    block = max(1, CONSTRAIN_NUMBERS // max(1, tree.size(draws) // len(next(iter(draws.values())))))
    with torch.no_grad():
        try:
            return vmap(function, randomness=randomness, chunk_size=block)(draws)
        except RuntimeError as error:
            logger.info("Draws are handled one by one: %s", str(error).splitlines()[0])
        num_draws = len(next(iter(draws.values())))
        results = [function(tree.map(lambda leaf, i=i: leaf[i], draws)) for i in range(num_draws)]
        return pytree.tree_map(lambda *leaves: torch.stack(leaves), *results)
