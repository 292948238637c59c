"""The loop: chains step together, draws are kept after warm-up, and trouble stops the run with the draws so far."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_scale import tree
from pyro_scale.choice import JitCompile
from pyro_scale.collected import Chains, Collected, Ending, Plan, Snapshot
from pyro_scale.compile import CompiledModel
from pyro_scale.data import names_of
from pyro_scale.draws import by_chain, constrain, over_draws
from pyro_scale.gradient import Frame
from pyro_scale.inputs import Chunk, Inputs
from pyro_scale.local import UNCHANGED, Table
from pyro_scale.moments import RunningMoments
from pyro_scale.progress import Reporter
from pyro_scale.steps import Steps
from pyro_scale.types import Kernel, Position


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
        frame: what the chains move in.
    """

    def __init__(
        self,
        compiled: CompiledModel,
        kernel: Kernel,
        plan: Plan,
        start: Position,
        seeds: Sequence[int],
        jit_compile: JitCompile = False,
        frame: Frame = UNCHANGED,
    ) -> None:
        self.compiled = compiled
        self.plan = plan
        self.tuned = frame.whitened is not None
        self.table = Table(compiled, frame)
        self.bound = bound = kernel.bind(self.table.target, compiled.num_data)
        start = self.table.coordinates(start)
        rows = torch.arange(compiled.batch_size or compiled.num_data, device=compiled.data.device)
        shapes = bound.noise_shape(compiled.at_rows(tree.map(lambda leaf: leaf[0], start), rows))
        by_block = bound.move is not None and not self.table.axes
        self.inputs = Inputs(
            compiled, kernel, shapes, plan.num_chains, plan.final_step, seeds, plan.warmup_steps, by_block=by_block
        )
        anchor = frame.anchor
        self.steps = Steps(compiled, kernel, self.table, bound, start, self.inputs, seeds[1], jit_compile, anchor)
        self.collected = self._collected()
        self.step = 0

    def _collected(self, num_steps: int = 0, waiting: Snapshot | None = None) -> Collected:
        compiled = self.compiled
        if not compiled.local or compiled.batch_size is None:
            return Collected(self.plan, num_steps, waiting, values=self._wanted if self.steps.large else None)
        names = [name for name in compiled.drawn if compiled.sites[name].local]

        def values(position: Position) -> dict[str, Tensor]:
            def one(position: Position) -> dict[str, Tensor]:
                return compiled.constrain(position, names)

            found: dict[str, Tensor] = over_draws(one, position, num_rows=compiled.num_data)
            return found

        unused = [] if set(names) & set(self.plan.keep) else list(compiled.local)
        return Collected(self.plan, num_steps, waiting, RunningMoments(values, self.plan.keep, unused))

    def _wanted(self, block: Position) -> Position:
        """Values of the sites to keep, at large positions, of which not all are to stay in memory."""
        return tree.map(lambda leaf: leaf.transpose(0, 1), constrain(self.compiled, [block], self.plan.keep))

    def draws(self, blocks: list[Position]) -> dict[str, Tensor]:
        """What was kept as values of all chains, `(num_chains, draws, *site)`."""
        return (
            by_chain(blocks) if blocks and self.collected.values else constrain(self.compiled, blocks, self.plan.keep)
        )

    def state(self) -> RunState:
        """A copy of the state between two chunks; `restore` continues from it with the same draws, bit for bit."""
        if self.steps.arriving is not None:
            self.steps.arriving.refuse_state()
        return RunState(self.step, self.table.copied(self.steps.chains), self.inputs.state())

    def restore(self, state: RunState) -> None:
        """Goes on from a state of a run with the same arguments, and collects the draws after those it had."""
        self.step, self.steps.chains = state.step, self.table.copied(state.chains)
        # the last step's had not got its log posterior yet
        reached = pytree.tree_map(lambda leaf: leaf.unsqueeze(0), self.steps.snapshot())
        self.collected = self._collected(state.step, reached if self.plan.kept_after(state.step) else None)
        self.inputs.restore(state.inputs)

    def advance(self, reporter: Reporter) -> Ending | None:
        """Takes the steps of one chunk; why the run ends early, if it does.

        The step after the last one only evaluates the log posterior of the last draw.
        """
        chunk = self.inputs.draw(self.step)
        num_steps, done = len(chunk.settings.step_size), 0
        kept = [number - self.step for number in self.plan.kept_within(self.step, self.step + num_steps)]
        while done < num_steps:
            taken = self.steps.take(chunk, done, kept, self.plan.num_steps - self.step - done)
            finite = torch.isfinite(taken.log_posterior).all(1)
            good = int(finite.long().cumprod(0).sum())
            bad = self.collected.took(taken, good)
            if bad:  # in rows that are not in the batch
                return self._diverged(f"a value of site {names_of(bad)}", chunk, done + good - 1)
            if good < len(finite):
                return self._not_finite(taken.log_posterior[good], chunk, done + good)
            done += good
            # the pilot run keeps no site: what it collects is no draw
            if reporter.update(self.collected.num_steps, self.collected.num_draws if self.plan.keep else 0):
                return Ending(f"stopped by the callback after {self.steps_done}")
        self.step += self.inputs.chunk_steps
        return None

    def finish(self, reporter: Reporter) -> Ending | None:
        """Takes the steps that are left; why the run ends early, if it does."""
        try:
            while self.step <= self.plan.final_step:
                if ending := self.advance(reporter):
                    return ending
            return None
        finally:
            self.inputs.close()
            if self.steps.arriving is not None:
                self.steps.arriving.stream.close()

    @property
    def steps_done(self) -> str:
        """In words."""
        before = self.plan.pilot_steps
        return f"{before + self.collected.num_steps} of {before + self.plan.num_steps} steps"

    def _not_finite(self, values: Tensor, chunk: Chunk, number: int) -> Ending:
        chain = int((~torch.isfinite(values)).int().argmax())
        here, batch = self.steps.at(chain, chunk.step(number)[0])
        bad = [name for name, leaf in here.items() if not torch.isfinite(leaf).all()]
        reason = f"the position of site {names_of(bad)} is not finite" if bad else self.compiled.blame(here, batch)
        one = "fit" if self.plan.traced else "chain"
        return self._diverged(f"the {one}" if len(values) == 1 else f"{one} {chain}", chunk, number, f": {reason}")

    def _diverged(self, what: str, chunk: Chunk, number: int, reason: str = "") -> Ending:
        step_size = float(chunk.settings.step_size[number])
        remedy = "try a tenth of it, or standardise the covariates"
        if self.tuned:
            remedy = "a longer pilot run (warmup_steps) or a lower bias_tolerance makes it smaller"
        return Ending(
            f"after {self.steps_done} {what} is not finite{reason}. The usual cause is a step_size too large for the "
            f"curvature: it is {step_size:g} here; {remedy}.",
            failed=True,
        )


def run_chains(
    compiled: CompiledModel,
    kernel: Kernel,
    plan: Plan,
    start: Position,
    seeds: Sequence[int],
    *,
    reporter: Reporter | None = None,
    jit_compile: JitCompile = False,
    frame: Frame = UNCHANGED,
) -> Chains:
    """Runs all chains from `start`, whose leaves have a leading chain axis; nobody is told of it without `reporter`.

    The run ends early, keeping its draws, when a value is not finite, the callback says so, or on Ctrl-C.
    """
    began = time.perf_counter()
    run, sites = Run(compiled, kernel, plan, start, seeds, jit_compile, frame), list(start)
    del start
    seconds = {"capture": time.perf_counter() - began}
    began = time.perf_counter()
    num_steps = plan.pilot_steps + plan.num_steps
    reporter = Reporter(num_steps, False, None) if reporter is None else reporter
    reporter.expect(num_steps, plan.pilot_steps)
    ending = to_the_end(run, reporter)
    run.steps.choice.remember()
    seconds |= {"compile": run.steps.choice.seconds, "sample": time.perf_counter() - began - run.steps.choice.seconds}
    kept = run.collected
    values = [each.log_posterior for each in kept.draws]
    return Chains(
        draws=run.draws([each.positions for each in kept.draws]),
        log_posterior=torch.cat(values).T.contiguous() if values else torch.empty(plan.num_chains, 0),
        kinetic=_by_site([each.kinetic for each in kept.draws], sites),
        warmup=run.draws(kept.warmup) if plan.save_warmup else None,
        moments=kept.moments.result() if kept.moments is not None else {},
        num_steps=kept.num_steps,
        clamped=kept.clamped,
        how=run.steps.choice.how,
        seconds=seconds,
        step_size=float(run.inputs.settings.step_size[max(0, kept.num_steps - 1)]),
        ending=ending,
    )


def _by_site(kinetic: list[Tensor | tuple[()]], sites: list[str]) -> dict[str, Tensor]:
    """Site -> `(num_chains, sum of n)`, from blocks `(n, num_chains, num_sites)`."""
    found = [block for block in kinetic if isinstance(block, Tensor)]
    return dict(zip(sites, torch.cat(found).permute(2, 1, 0).contiguous(), strict=True)) if found else {}


def to_the_end(run: Run, reporter: Reporter) -> Ending | None:
    """Takes all steps that are left; why the run ended early, if it did."""
    try:
        return run.finish(reporter)
    except KeyboardInterrupt:
        if not run.collected.draws and not run.plan.traced:
            raise
        return Ending(f"interrupted after {run.steps_done}")
    except Exception as error:  # of the model or the callback: the draws are not its fault
        return Ending(f"{type(error).__name__} after {run.steps_done}", error=error)
    finally:
        reporter.close()
