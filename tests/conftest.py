"""Rules for every test: global state is left as it was found, and nothing is skipped in CI."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import numpy as np
import pyro
import pytest
import torch
from hypothesis import settings

# small tensors: more threads cost time, and make sums depend on the machine
torch.set_num_threads(1)

# the first call of a compiled or traced function takes seconds; a run must not depend on what an earlier one found
settings.register_profile("pyro_scale", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("pyro_scale")


class GlobalState(NamedTuple):
    """One piece of state that tests share."""

    name: str
    get: Callable[[], Any]
    set: Callable[[Any], object]


def get_params() -> dict[str, torch.Tensor]:
    # copies: an optimiser changes the stored tensors in place
    store = pyro.get_param_store()
    return {name: store[name].detach().clone() for name in store}


def set_params(params: dict[str, torch.Tensor]) -> None:
    pyro.clear_param_store()
    for name, value in params.items():
        pyro.param(name, value)


GLOBAL_STATES = [
    GlobalState("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
    GlobalState(
        "torch's default device",
        torch.get_default_device,
        # None is the default; "cpu" would leave a mode on torch's stack that intercepts every factory call
        lambda device: torch.set_default_device(None if device.type == "cpu" else device),
    ),
    GlobalState("torch's gradient mode", torch.is_grad_enabled, torch.set_grad_enabled),
    GlobalState("torch's number of threads", torch.get_num_threads, torch.set_num_threads),
    GlobalState("torch's global random state", torch.get_rng_state, torch.set_rng_state),
    GlobalState("NumPy's global random state", np.random.get_state, np.random.set_state),
    GlobalState("Python's global random state", random.getstate, random.setstate),
    GlobalState("Pyro's settings (validation flags)", pyro.settings.get, lambda values: pyro.settings.set(**values)),
    GlobalState("Pyro's parameter store", get_params, set_params),
]


def same(one: Any, other: Any) -> bool:
    """Equality that looks into dicts and tuples, and compares arrays as wholes."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other


found = pytest.StashKey[list[Any]]()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    item.stash[found] = [state.get() for state in GLOBAL_STATES]
    return (yield)


# Around the teardown, not in a fixture: wider fixtures, where whole runs of inference sit, are watched too.
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    try:
        return (yield)
    finally:
        changed = []
        for state, before in zip(GLOBAL_STATES, item.stash[found], strict=True):
            if not same(before, state.get()):
                state.set(before)
                changed.append(state.name)
        if changed:
            pytest.fail(f"the test or a fixture it was first to use changed {', '.join(changed)}", pytrace=False)


def fail_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """In CI a skipped or expectedly failing test is a failure: otherwise it stays unseen for years."""
    if report.skipped and os.environ.get("CI"):
        reason = getattr(report, "wasxfail", None) or report.longrepr
        report.__dict__.pop("wasxfail", None)
        report.outcome = "failed"
        report.longrepr = f"skipped, which is not allowed in CI: {reason[-1] if isinstance(reason, tuple) else reason}"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    fail_skip(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    fail_skip(report)
    return report
