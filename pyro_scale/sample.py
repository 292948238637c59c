"""The loop: chains step together, draws are kept after warm-up, and trouble stops the run with the draws so far."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from pyro_scale import tree
from pyro_scale.arriving import arriving_at
from pyro_scale.capture import Step, fastest
from pyro_scale.choice import Choice, JitCompile
from pyro_scale.collected import Chains, Collected, Ending, Plan, RunningMoments
from pyro_scale.compile import CompiledModel
from pyro_scale.data import names_of
from pyro_scale.draws import constrain, over_draws
from pyro_scale.inputs import Chunk, Inputs
from pyro_scale.local import Table
from pyro_scale.loop import Loop
from pyro_scale.progress import Callback, Reporter
from pyro_scale.starts import LinAlgError
from pyro_scale.types import Batch, Kernel, Noise, Position, Settings


LARGE = 100_000
"""Chains of more coordinates run one after another: side by side, their gradients would all be in memory."""


FIRST_CALL = 64
CALL_SECONDS = 0.1
"""Steps of the first call of a native loop; then a call lasts about so long, and Ctrl-C and the callback wait for it."""


class RunState(NamedTuple):
    """Where a run stands between two chunks of steps: all that the steps to come depend on.

    Attributes:
        step: steps taken.
        chains: the kernel's state, with a leading chain axis.
        inputs: the generators' states and the rows waiting to be visited.
    """

    step: int
    chains: Any
    inputs: dict[str, Tensor]


class Run:
    """Chains under way.

    Args:
        compiled: the model.
        kernel: settings of the algorithm; its step_size is set.
        plan: how long to run and what to keep.
        start: position of every chain: leaves with a leading chain axis.
        seeds: of the noise and of the minibatches.
        jit_compile: whether steps run as native loops; "auto" where that repays.
    """

    def __init__(
        self,
        compiled: CompiledModel,
        kernel: Kernel,
        plan: Plan,
        start: Position,
        seeds: Sequence[int],
        jit_compile: JitCompile = False,
    ) -> None:
        self.compiled = compiled
        self.plan = plan
        self.table = Table(compiled)
        bound = kernel.bind(self.table.target, compiled.num_data)
        start = self.table.coordinates(start)
        one = tree.map(lambda leaf: leaf[0], start)
        batch = torch.arange(compiled.batch_size or compiled.num_data, device=compiled.data.device)
        shapes = bound.noise_shape(compiled.at_rows(one, batch))
        self.inputs = Inputs(compiled, kernel, shapes, plan.num_chains, plan.num_steps, seeds, plan.warmup_steps)
        self.chains = vmap(bound.init)(start, self.inputs.noise(plan.num_chains, shapes=bound.noise_shape(one)))
        self.collected = self._collected()
        self.step = 0
        indices, noise, settings = self.inputs.example()
        self.arriving = arriving_at(compiled, seeds[1])
        self.batch = compiled.batch(indices) if self.arriving is None else self.arriving.example
        mapped = (True, indices is not None, True, False)
        every_step_the_same = (1,) if indices is None and self.arriving is None else ()
        moved = self.table.rows(self.chains, indices)
        if self.table.axes:
            self.table.check(kernel, self.chains, vmap(bound.init)(moved.position, noise))
        apart = plan.num_chains == 1 or tree.size(one) > LARGE

        def recorded(batch: Batch) -> Step:
            arguments = (moved, batch, noise, settings)
            return fastest(bound.update, mapped, *arguments, fixed=every_step_the_same, apart=apart)

        self.recorded = recorded(self.batch)
        self.update = self.recorded.function
        if self.arriving is not None:
            self.arriving.expect(self.batch, self.update, lambda batch: recorded(batch).function)
        self.loop: Loop | None = None
        self.choice = Choice(jit_compile, self.recorded.recorded, self.recorded.how, self.recorded.reason)
        self.steps_a_call = FIRST_CALL

    def _collected(self, num_steps: int = 0, waiting: Position | None = None) -> Collected:
        compiled = self.compiled
        if not compiled.local or compiled.batch_size is None:
            return Collected(self.plan, num_steps, waiting)
        names = [name for name in compiled.drawn if compiled.sites[name].local]

        def values(position: Position) -> dict[str, Tensor]:
            def one(position: Position) -> dict[str, Tensor]:
                return compiled.constrain(position, names)

            found: dict[str, Tensor] = over_draws(one, position, num_rows=compiled.num_data)
            return found

        unused = [] if set(names) & set(self.plan.keep) else list(compiled.local)
        return Collected(self.plan, num_steps, waiting, RunningMoments(values, self.plan.keep, unused))

    def state(self) -> RunState:
        """A copy of the state between two chunks; `restore` continues from it with the same draws, bit for bit."""
        if self.arriving is not None:
            self.arriving.refuse_state()
        return RunState(self.step, self.table.copied(self.chains), self.inputs.state())

    def restore(self, state: RunState) -> None:
        """Goes on from a state of a run with the same arguments, and collects the draws after those it had."""
        self.step, self.chains = state.step, self.table.copied(state.chains)
        # the position of the last step had not got its log posterior yet
        waiting = self.position() if self.plan.kept_after(state.step) else None
        self.collected = self._collected(state.step, waiting)
        self.inputs.restore(state.inputs)

    def advance(self, reporter: Reporter) -> Ending | None:
        """Takes the steps of one chunk; why the run ends early, if it does.

        The step after the last one only evaluates the log posterior of the last draw.
        """
        chunk = self.inputs.draw(self.step)
        num_steps, done = len(chunk.settings.step_size), 0
        while done < num_steps:
            if self.choice.now(self.plan.num_steps - self.step - done):
                self._compile(chunk)
            take = self._one_step if self.loop is None else self._many_steps
            began = time.perf_counter()
            taken, ending = take(chunk, done)
            self._took(taken, time.perf_counter() - began)
            stop = reporter.update(self.collected.num_steps, len(self.collected.draws))
            if ending is not None:
                return ending
            if stop and self.collected.num_steps < self.plan.num_steps:
                return Ending(f"stopped by the callback after {self.steps_done}")
            done += taken
        self.step += self.inputs.chunk_steps
        return None

    def _compile(self, chunk: Chunk) -> None:
        columns = None if chunk.indices is None else self.compiled.data.rows
        self.chains = self.table.copied(self.chains)  # a loop writes to it
        arguments = (self.recorded, self.table, self.chains, chunk, self.batch, columns)
        self.loop = self.choice.compiled(lambda: Loop(*arguments))

    def _took(self, num_steps: int, seconds: float) -> None:
        self.choice.took(num_steps, seconds)
        if self.loop is not None and num_steps == self.steps_a_call:
            self.steps_a_call = max(1, min(4 * num_steps, round(num_steps * CALL_SECONDS / max(seconds, 1e-9))))

    def _one_step(self, chunk: Chunk, number: int) -> tuple[int, Ending | None]:
        """One step of a chunk, by the recorded function: the steps taken, and why the run ends if it does."""
        indices, noise, settings = chunk.step(number)
        if indices is not None:
            self.batch = self.compiled.batch(indices)
        elif self.arriving is not None:
            self.batch, self.update = self.arriving.next()
        return 1, self._step(indices, noise, settings)

    def _step(self, indices: Tensor | None, noise: Noise, settings: Settings) -> Ending | None:
        try:
            moved = self.table.rows(self.chains, indices)
            after, info = self.update(moved, self.batch, noise, settings)
        except LinAlgError:  # a matrix of the model is no longer positive definite
            return self._not_finite(self._one_by_one(), settings)
        if not torch.isfinite(info.log_posterior).all():
            return self._not_finite(info.log_posterior, settings)
        if bad := self.collected.settle(info.log_posterior):  # in rows that are not in the batch
            return self._diverged(f"a value of site {names_of(bad)}", settings)
        if self.collected.num_steps < self.plan.num_steps:
            self.chains = self.table.write(self.chains, after, indices)
            self.collected.add(self.position, info.clamped)
        return None
    def _many_steps(self, chunk: Chunk, first: int) -> tuple[int, Ending | None]:
        """As `_one_step`, of as many steps as one call of the native loop takes."""
        assert self.loop is not None
        if self.arriving is not None:
            self.batch, self.update = self.arriving.next()
            if len(self.batch.indices) != self.loop.batch_size:
                indices, noise, settings = chunk.step(first)
                return 1, self._step(indices, noise, settings)
        ends = self._segments(chunk, first)
        taken = self.loop.take(self.chains, chunk, self.batch, first, ends)
        finite = torch.isfinite(taken.log_posterior).all(1)
        good = int(finite.long().cumprod(0).sum())
        bad = self.collected.took(taken, [end - first for end in ends], good, self.table.position)
        settings = chunk.step(first + min(good, len(finite) - 1))[2]
        if bad:
            return good, self._diverged(f"a value of site {names_of(bad)}", settings)
        if good < len(finite):
            if chunk.indices is not None:
                self.batch = self.compiled.batch(chunk.indices[first + good])
            return good, self._not_finite(taken.log_posterior[good], settings)
        return len(finite), None

    def _segments(self, chunk: Chunk, first: int) -> list[int]:
        """Numbers of steps in the chunk before which the native loop stops to keep a position; the last ends it."""
        assert self.loop is not None
        last = min(len(chunk.settings.step_size), first + self.steps_a_call)
        if self.arriving is not None:
            last = first + 1
        ends = [step - self.step for step in self.plan.kept_within(self.step + first, self.step + last)]
        if len(ends) >= self.loop.most_kept:
            return ends[: self.loop.most_kept]
        return ends if ends and ends[-1] == last else [*ends, last]

    def position(self) -> Position:
        """Where all chains are, in the model's unconstrained coordinates; steps to come do not write to it."""
        position = self.table.position(self.chains.position)
        return position if self.loop is None else tree.map(torch.clone, position)

    @property
    def steps_done(self) -> str:
        """In words."""
        return f"{self.collected.num_steps} of {self.plan.num_steps} steps"

    def _one_by_one(self) -> Tensor:
        """Log posterior of every chain, NaN where the model raises."""
        values = torch.full((self.plan.num_chains,), torch.nan, dtype=torch.float64)
        for chain in range(self.plan.num_chains):
            position, batch = self._at(chain)
            with suppress(LinAlgError), torch.no_grad():
                values[chain] = self.compiled(position, batch)
        return values

    def _at(self, chain: int) -> tuple[Position, Batch]:
        """Position and batch of one chain."""
        position = tree.map(lambda leaf: leaf[chain], self.position())
        shared = self.compiled.batch_size is None or self.arriving is not None
        batch = self.batch if shared else self.compiled.batch(self.batch.indices[chain])
        return self.compiled.at_rows(position, batch.indices), batch

    def _not_finite(self, values: Tensor, settings: Settings) -> Ending:
        chain = int((~torch.isfinite(values)).int().argmax())
        here, batch = self._at(chain)
        bad = [name for name, leaf in here.items() if not torch.isfinite(leaf).all()]
        reason = f"the position of site {names_of(bad)} is not finite" if bad else self.compiled.blame(here, batch)
        return self._diverged(f"chain {chain}", settings, f": {reason}")

    def _diverged(self, what: str, settings: Settings, reason: str = "") -> Ending:
        return Ending(
            f"after {self.steps_done} {what} is not finite{reason}. The usual cause is a step_size too large for the "
            f"curvature: it is {float(settings.step_size):g} here; try a tenth of it, or standardise the covariates.",
            failed=True,
        )


def run_chains(
    compiled: CompiledModel,
    kernel: Kernel,
    plan: Plan,
    start: Position,
    seeds: Sequence[int],
    *,
    progress: bool = True,
    callback: Callback | None = None,
    jit_compile: JitCompile = False,
) -> Chains:
    """Runs all chains from `start`, whose leaves have a leading chain axis.

    The run ends early, keeping its draws, when a value is not finite, the callback says so, or on Ctrl-C.
    """
    began = time.perf_counter()
    run = Run(compiled, kernel, plan, start, seeds, jit_compile)
    seconds = {"capture": time.perf_counter() - began}
    began = time.perf_counter()
    ending = _to_the_end(run, Reporter(plan.num_steps, progress, callback))
    run.choice.remember()
    seconds |= {"compile": run.choice.seconds, "sample": time.perf_counter() - began - run.choice.seconds}
    kept = run.collected
    values = [log_posterior for _, log_posterior in kept.draws]
    return Chains(
        draws=constrain(compiled, [position for position, _ in kept.draws], plan.keep),
        log_posterior=torch.stack(values, 1) if values else torch.empty(plan.num_chains, 0),
        warmup=constrain(compiled, kept.warmup, plan.keep) if plan.save_warmup else None,
        moments=kept.moments.result() if kept.moments is not None else {},
        num_steps=kept.num_steps,
        clamped=kept.clamped,
        how=run.choice.how,
        seconds=seconds,
        step_size=float(run.inputs.settings.step_size[max(0, kept.num_steps - 1)]),
        ending=ending,
    )


def _to_the_end(run: Run, reporter: Reporter) -> Ending | None:
    try:
        while run.step <= run.plan.num_steps:
            if ending := run.advance(reporter):
                return ending
    except KeyboardInterrupt:
        if not run.collected.draws:
            raise
        return Ending(f"interrupted after {run.steps_done}")
    except Exception as error:  # of the model or the callback: the draws are not its fault
        return Ending(f"{type(error).__name__} after {run.steps_done}", error=error)
    finally:
        reporter.close()
        run.inputs.close()
        if run.arriving is not None:
            run.arriving.stream.close()
    return None
