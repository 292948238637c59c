"""Native loops take the steps that captured and eager ones take, keep what they keep and stop where they stop."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_cases import CASES, KernelCase, name_of
from small_models import COUNTS, DATA, X, Y, bounded, counts, numbers, regression, starts

from pyro_scale import capture
from pyro_scale.capture import CaptureError
from pyro_scale.collected import Chains, Plan
from pyro_scale.compile import CompiledModel, compile_model
from pyro_scale.kernels import SGHMC
from pyro_scale.sample import run_chains

SEEDS = (11, 12)
KERNEL = SGHMC(step_size=0.1)


def sample(model: CompiledModel, kernel: Any, plan: Plan, jit_compile: bool, **options: Any) -> Chains:
    start = starts(model, plan.num_chains)
    return run_chains(model, kernel, plan, start, SEEDS, progress=False, jit_compile=jit_compile, **options)


def assert_same(found: Chains, expected: Chains, tolerance: float = 1e-10) -> None:
    assert len(expected.draws) > 0
    for name in expected.draws:
        torch.testing.assert_close(found.draws[name], expected.draws[name], rtol=tolerance, atol=1e-14)
    torch.testing.assert_close(found.log_posterior, expected.log_posterior, rtol=tolerance, atol=1e-12)
    assert torch.equal(found.clamped, expected.clamped)
    assert found.num_steps == expected.num_steps


def not_recorded(*arguments: Any, **options: Any) -> Any:
    raise CaptureError("not today")


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_eager_captured_and_compiled_steps_are_the_same(case: KernelCase, monkeypatch: pytest.MonkeyPatch) -> None:
    """To 1e-10 in float64 over 1000 steps, of which the first 200 warm up."""
    model = compile_model(regression, DATA, batch_size=6)
    plan = Plan(80, 200, 10, 2, ("w", "sigma"))
    compiled = sample(model, case.kernel, plan, jit_compile=True)
    captured = sample(model, case.kernel, plan, jit_compile=False)
    monkeypatch.setattr(capture, "record", not_recorded)
    eager = sample(model, case.kernel, plan, jit_compile=False)
    assert (eager.how, captured.how, compiled.how) == ("eager", "captured", "compiled")
    assert compiled.num_steps == 1000
    assert_same(captured, eager)
    assert_same(compiled, eager)
