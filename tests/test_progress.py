"""What a run tells while it lasts, from the search for modes to the last draw."""

from __future__ import annotations

import io
import re
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from small_models import numbers
from torch import Tensor

import pyro_scale as ps
from pyro_scale import progress as progress_module
from pyro_scale.errors import StoppedError
from pyro_scale.posterior import Posterior
from pyro_scale.progress import Progress, Reporter


def means(y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([y.shape[1]]).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(w, 1.0).to_event(1), obs=y)


def cubes(y: Tensor) -> None:
    """Of negative curvature nearly everywhere, so that Adam climbs."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([y.shape[1]]).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(w**3, 1.0).to_event(1), obs=y)


SMALL, LARGE = numbers(40, 3, seed=1), numbers(40, 301, seed=2)
"""For matrices, and for diagonals."""
both = pytest.mark.parametrize("y", [SMALL, LARGE], ids=["dense", "diagonal"])


def run(y: Tensor, model: Any = means, **options: Any) -> Posterior:
    short = {"num_samples": 3, "num_chains": 2, "warmup_steps": 120, "thinning": 2, "batch_size": 10}
    return ps.infer(model, y, **{**short, "seed": 0, "progress": False, "jit_compile": False, **options})


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """The callback is called at every step."""
    monkeypatch.setattr(progress_module, "CALLBACK_INTERVAL", 0.0)


@both
def test_steps_of_the_pilot_count_as_warm_up_steps(y: Tensor) -> None:
    seen: list[Progress] = []
    posterior = run(y, callback=lambda progress: seen.append(progress))
    pilot = posterior.settings["tuning"]["pilot_steps"]
    steps = [progress.step for progress in seen]
    assert 0 < pilot <= 90
    assert steps == sorted(steps)
    assert set(steps) == set(range(127))
    assert {progress.num_steps for progress in seen} == {126}
    assert {progress.num_draws for progress in seen if progress.step <= 120} == {0}
    assert seen[-1][:3] == (126, 126, 3)
    seconds = [progress.seconds for progress in seen]
    assert seconds == sorted(seconds) and seconds[0] >= 0
    assert torch.equal(run(y).draws["w"], posterior.draws["w"])  # whoever watches


def test_until_the_pilot_has_chosen_there_are_at_least_so_many_steps() -> None:
    seen: list[Progress] = []
    posterior = run(SMALL, warmup_steps=None, thinning=None, callback=lambda progress: seen.append(progress))
    expected = [progress.num_steps for progress in seen]
    assert all(progress.step < progress.num_steps for progress in seen[:-2])
    assert expected == sorted(expected)
    assert expected[-1] == posterior.num_steps == seen[-1].step


@pytest.mark.parametrize(("y", "step"), [(SMALL, 1), (SMALL, 50), (LARGE, 50)])
def test_a_callback_stops_the_pilot(y: Tensor, step: int) -> None:
    message = (
        f"^The run ended early: stopped by the callback after {step} pilot steps, before the first draw. Let it run "
        "longer, or lower warmup_steps.$"
    )
    with pytest.raises(StoppedError, match=message):
        run(y, callback=lambda progress: progress.step == step)


def test_a_callback_stops_at_the_last_step_of_a_window() -> None:
    """Where another part of the run would stop nothing, since it has come to its end: of 90 steps, a third here."""
    with pytest.raises(StoppedError, match="after 30 pilot steps"):
        run(SMALL, callback=lambda progress: progress.step == 30)


def test_a_callback_stops_the_search_for_modes() -> None:
    calls: list[int] = []

    def callback(progress: Progress) -> bool:
        calls.append(progress.step)
        return len(calls) == 4

    with pytest.raises(StoppedError, match="stopped by the callback while modes were sought, before the first draw"):
        run(LARGE**3, cubes, callback=callback)
    assert calls == [0] * 4


@pytest.mark.parametrize("error", [ZeroDivisionError("mine"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_what_the_callback_raises_ends_the_pilot(error: BaseException) -> None:
    def callback(progress: Progress) -> None:
        if progress.step == 50:
            raise error

    with pytest.raises(type(error)) as caught:
        run(SMALL, callback=callback)
    assert caught.value is error
    if isinstance(error, Exception):
        assert error.posterior is None  # type: ignore[attr-defined]


def test_an_early_end_after_the_pilot_counts_its_steps() -> None:
    stopped = run(SMALL, callback=lambda progress: progress.num_draws == 2)
    assert stopped.settings["ended_early"] == "stopped by the callback after 125 of 126 steps"
    assert stopped.num_steps == 125


class Terminal(io.StringIO):
    """A screen that remembers what it showed."""

    def isatty(self) -> bool:
        return True


def test_one_bar_covers_the_pilot_and_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    run(SMALL, progress=True, warmup_steps=None, thinning=None)
    shown = [tuple(map(int, found)) for found in re.findall(r"(\d+)/(\d+) \[", screen.getvalue())]
    print(shown[:3], shown[-3:])
    assert len([line for line in screen.getvalue().split("\n") if "step/s" in line]) == 1
    assert {whole for done, whole in shown if done == whole} == {shown[-1][1]}  # it is full once, at the end
    assert shown[0][0] == 0 and shown[-1][0] == shown[-1][1]
    assert shown[0][1] < shown[-1][1]


def test_a_bar_is_closed_by_an_error() -> None:
    reporter = Reporter(10, False, None)
    reporter.show = True
    with pytest.raises(ZeroDivisionError), reporter.closed_by_errors():
        reporter.update(1, 0)
        raise ZeroDivisionError
    assert reporter.bar.disable  # as tqdm leaves a bar that is closed


def test_without_a_step_there_is_no_bar() -> None:
    reporter = Reporter(10, True, None)
    reporter.close()
    assert reporter.bar is None
