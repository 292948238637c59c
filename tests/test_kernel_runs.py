"""Every kernel in the loop: captured as eager, resumed bit for bit, told of warm-up, right in float32."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import pytest
import torch
from kernel_cases import CASES, KernelCase, flat, leaves, name_of
from small_models import DATA, X, Y, regression, starts

from pyro_scale import capture
from pyro_scale.capture import CaptureError
from pyro_scale.collected import Plan
from pyro_scale.compile import compile_model
from pyro_scale.progress import Reporter
from pyro_scale.sample import Chains, Run, run_chains
from pyro_scale.types import BoundKernel, Info, Position, Settings

SEEDS = (11, 12)
MODEL = compile_model(regression, DATA, batch_size=6)

every_kernel = pytest.mark.parametrize("case", CASES, ids=name_of)


def plan(num_samples: int, warmup_steps: int, thinning: int = 1) -> Plan:
    return Plan(num_samples, warmup_steps, thinning, 2, ("w", "sigma"))


def finish(run: Run) -> None:
    while run.step <= run.plan.num_steps:
        assert run.advance(Reporter(run.plan.num_steps, False, None)) is None


def sample(kernel: Any, wanted: Plan, model: Any = MODEL) -> Chains:
    return run_chains(model, kernel, wanted, starts(model, 2), SEEDS)


@every_kernel
def test_captured_steps_are_eager_ones(case: KernelCase, monkeypatch: pytest.MonkeyPatch) -> None:
    """To 1e-10 over 200 steps, of which the first half warms up."""

    def not_recorded(*arguments: Any, **options: Any) -> Any:
        raise CaptureError("not today")

    wanted = plan(5, warmup_steps=100, thinning=20)
    captured = sample(case.kernel, wanted)
    monkeypatch.setattr(capture, "record", not_recorded)
    eager = sample(case.kernel, wanted)
    assert (captured.how, eager.how) == ("captured", "eager")
    for name in captured.draws:
        torch.testing.assert_close(captured.draws[name], eager.draws[name], rtol=1e-10, atol=0)
    torch.testing.assert_close(captured.log_posterior, eager.log_posterior, rtol=1e-10, atol=0)


@every_kernel
def test_a_run_resumes_bit_for_bit(case: KernelCase, monkeypatch: pytest.MonkeyPatch) -> None:
    """In another run, from before and after the end of warm-up, the whole state of the chains included."""
    monkeypatch.setattr("pyro_scale.inputs.CHUNK_STEPS", 8)
    wanted = plan(18, warmup_steps=12)
    whole = Run(MODEL, case.kernel, wanted, starts(MODEL, 2), SEEDS)
    states = []
    while whole.step <= wanted.num_steps:
        states.append(whole.state())
        whole.advance(Reporter(wanted.num_steps, False, None))
    another = Run(MODEL, case.kernel, wanted, starts(MODEL, 2), (98, 99))
    for state in states[1:3]:
        another.restore(state)
        finish(another)
        for one, other in zip(leaves(another.steps.chains), leaves(whole.steps.chains), strict=True):
            assert torch.equal(one, other)
        assert torch.equal(another.collected.draws[-1].log_posterior, whole.collected.draws[-1].log_posterior)


@pytest.mark.parametrize("case", [case for case in CASES if case.adaptive], ids=name_of)
def test_what_adapts_does_so_in_warm_up_alone(case: KernelCase) -> None:
    """Without warm-up not at all; with it, to what the same warm-up leads to, however many steps follow."""

    def after(num_samples: int, warmup_steps: int) -> torch.Tensor:
        run = Run(MODEL, case.kernel, plan(num_samples, warmup_steps), starts(MODEL, 2), SEEDS)
        finish(run)
        return torch.cat([flat(run.steps.chains, name) for name in case.adaptive])

    first = [case.other[name] for name in case.adaptive]
    assert set(after(5, warmup_steps=0).tolist()) == set(first)
    assert set(after(5, warmup_steps=3).tolist()) != set(first)
    assert torch.equal(after(1, warmup_steps=3), after(9, warmup_steps=3))


@every_kernel
def test_float32_stays_float32(case: KernelCase) -> None:
    narrow = compile_model(regression, {"x": X.float(), "y": Y.float()}, batch_size=6)
    run = Run(narrow, case.kernel, plan(10, warmup_steps=10), starts(narrow, 2), SEEDS)
    assert {leaf.dtype for leaf in leaves(run.steps.chains)} == {torch.float32}
    finish(run)
    assert {leaf.dtype for leaf in leaves(run.steps.chains)} == {torch.float32}
    assert all(torch.isfinite(leaf).all() for leaf in leaves(run.steps.chains))


class Counted(NamedTuple):
    position: Position


@dataclasses.dataclass(frozen=True)
class Counter:
    """Every coordinate counts the steps that adapt, and in thousands those that do not."""

    step_size: float = 1.0
    temperature: float = 1.0

    def bind(self, target: Any, num_data: int) -> BoundKernel:
        def update(state: Counted, batch: Any, noise: Any, settings: Settings) -> tuple[Counted, Info]:
            added = settings.adapting + 1000 * (1 - settings.adapting)
            info = Info(sum(leaf.sum() for leaf in state.position.values()), torch.zeros((), dtype=torch.long))
            return Counted({name: leaf + added for name, leaf in state.position.items()}), info

        return BoundKernel(lambda position: (), lambda position, noise: Counted(position), update)


@pytest.mark.parametrize("warmup_steps", [0, 1, 7])
def test_a_kernel_is_told_when_warm_up_is_over(warmup_steps: int) -> None:
    start = starts(MODEL, 2)
    found = sample(Counter(), plan(3, warmup_steps, thinning=2)).draws["w"] - start["w"].unsqueeze(1)
    for draw in range(3):
        counted = torch.full((2, 2), warmup_steps + 1000.0 * 2 * (draw + 1), dtype=torch.float64)
        torch.testing.assert_close(found[:, draw], counted)
