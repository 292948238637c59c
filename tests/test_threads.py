"""Few numbers are gone through in one thread; afterwards torch has as many threads as before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import pyro_scale as ps
from pyro_scale.compile import compile_model
from pyro_scale.threads import suit_threads, threads_kept

KERNEL = ps.kernels.SGLD(step_size=0.1)


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def model(x: torch.Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(mu, 1.0).to_event(1), obs=x)


def rows(number: int) -> torch.Tensor:
    return torch.linspace(-1, 1, 4 * number).reshape(number, 4)


def seen_by(call: Callable[..., Any]) -> int:
    """Threads in the middle of a run, after which there are two again."""
    seen = []
    call(callback=lambda progress: seen.append(torch.get_num_threads()))
    assert torch.get_num_threads() == 2
    return seen[-1]


@pytest.mark.parametrize(("number", "num_chains", "threads"), [(200, 2, 1), (40_000, 1, 2), (200, 400, 2)])
def test_threads_of_a_run(number: int, num_chains: int, threads: int) -> None:
    def run(**options: Any) -> None:
        batch = {"batch_size": 100, "num_chains": num_chains, "num_samples": 10, "warmup_steps": 0}
        ps.infer(model, {"x": rows(number)}, KERNEL, seed=0, progress=False, **batch, **options)

    assert seen_by(run) == threads


def test_threads_of_a_fit() -> None:
    assert seen_by(lambda **options: ps.infer(model, {"x": rows(200)}, "vi_diag", warmup_steps=50, **options)) == 1


@pytest.mark.parametrize(("number", "threads"), [(2000, 1), (40_000, 2)])
def test_threads_for_a_loader(number: int, threads: int) -> None:
    loader = DataLoader(TensorDataset(rows(number)), batch_size=50, shuffle=True)
    with threads_kept():
        suit_threads(compile_model(model, loader), 1)
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == 2


def test_threads_of_the_reference() -> None:
    seen = []

    def watched(x: torch.Tensor) -> None:
        model(x)
        seen.append(torch.get_num_threads())

    ps.diagnostics.nuts(watched, {"x": rows(50)}, num_samples=5, warmup_steps=5, num_chains=1, seed=0, progress=False)
    assert seen[-1] == 1
    assert torch.get_num_threads() == 2


def test_errors_leave_the_threads_as_they_were() -> None:
    def stop(progress: Any) -> None:
        assert torch.get_num_threads() == 1
        raise RuntimeError("stopped on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        ps.infer(model, {"x": rows(200)}, KERNEL, num_samples=10, callback=stop)
    assert torch.get_num_threads() == 2


def test_threads_while_gradients_are_checked() -> None:
    posterior = ps.infer(model, {"x": rows(100)}, KERNEL, num_samples=300, num_chains=2, seed=0, progress=False)
    seen = []
    whole = type(posterior.compiled).__call__
    assert posterior.compiled is not None

    def watched(self: Any, *arguments: Any) -> Any:
        seen.append(torch.get_num_threads())
        return whole(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(posterior.compiled), "__call__", watched)
        assert posterior.health.checks
    assert set(seen) == {1}
    assert torch.get_num_threads() == 2
