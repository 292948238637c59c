"""When a run compiles: never too late by much, and as earlier runs measured."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import DATA, regression

import pyro_scale as ps
from pyro_scale import choice
from pyro_scale.cached import cache_folder
from pyro_scale.capture import Recorded, record
from pyro_scale.choice import Choice, Known
from pyro_scale.errors import ArgumentError
from pyro_scale.native import NativeError

RECORDED = record(lambda x: x.sin().cos() + 1, torch.zeros(3))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is known of earlier runs."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    found = cache_folder()
    assert found is not None and found.parent == tmp_path
    return found


def choose(jit_compile: Any = "auto", recorded: Recorded | None = RECORDED, reason: str = "") -> Choice:
    return Choice(jit_compile, recorded, "captured", reason)


def known(compile: float, compiled: float, recorded: float | None) -> Choice:
    """What a later run finds."""
    earlier = choose(True)
    earlier.compiled(lambda: None)
    earlier.in_cache = compile
    if recorded is not None:
        earlier.is_compiled = False
        earlier.took(1000, 1000 * recorded)
        earlier.is_compiled = True
    earlier.took(50, 50 * compiled)
    earlier.remember()
    return choose()


def seconds(chosen: Choice, calls: int, compile: float, compiled: float, recorded: float) -> float:
    """What a run of so many calls takes, in a world where these are the seconds of each thing."""
    spent = 0.0
    for done in range(calls):
        if chosen.now(calls - done):
            return spent + compile + (calls - done) * compiled
        chosen.took(1, recorded)
        spent += recorded
    return spent


def test_true_compiles_at_once_and_false_never() -> None:
    assert choose(True).now(1)
    never = choose(False)
    never.took(10, 1e9)
    assert not never.now(10**12)


def test_auto_measures_first() -> None:
    chosen = choose()
    assert not chosen.now(10**9)
    chosen.took(100, choice.TRIAL_SECONDS)
    assert chosen.now(10**9)


def test_a_first_compilation_may_cost_somewhat_more_than_the_run_saves() -> None:
    """Later processes find the code; they know what it costs, and decide by that alone."""

    def later(compile: float) -> Choice:
        return known(compile, compiled=1e-4, recorded=1e-3)

    chosen = choose()
    chosen.took(100, choice.TRIAL_SECONDS)
    enough = chosen._cost() / chosen._saved()
    assert chosen.now(round(0.8 * enough))
    too_few = choose()
    too_few.took(100, choice.TRIAL_SECONDS)
    assert not too_few.now(round(0.7 * enough))
    assert not later(1.0).now(round(0.9 * 1.0 / 9e-4))
    assert later(1.0).now(round(1.1 * 1.0 / 9e-4))


def test_a_user_without_a_name_has_runs_without_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("getpass.getuser", nameless)
    assert cache_folder() is not None  # chosen by name: nobody is asked
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    assert cache_folder() is None
    chosen = choose()
    chosen.took(100, choice.TRIAL_SECONDS)
    assert chosen.now(10**9)
    chosen.compiled(lambda: None)
    chosen.took(100, 1e-4)
    chosen.remember()


def test_auto_does_not_ask_again() -> None:
    chosen = choose()
    chosen.took(100, choice.TRIAL_SECONDS)
    assert not chosen.now(10)
    assert not chosen.now(10**9)


@pytest.mark.parametrize(
    ("compile", "compiled", "recorded", "calls"),
    list(itertools.product([0.5, 4.0, 60.0], [1e-4, 9e-4], [1e-3, 1e-2], [100, 3000, 100_000])),
)
def test_what_is_known_decides_well(compile: float, compiled: float, recorded: float, calls: int) -> None:
    """At most 1.1 times the better of the two fixed choices; in fact none, since nothing is left to measure."""
    chosen = known(compile, compiled, recorded)
    best = min(compile + calls * compiled, calls * recorded)
    assert seconds(chosen, calls, compile, compiled, recorded) <= 1.001 * best


@pytest.mark.parametrize("factor", [1 / 1.45, 1.0, 1.45])
@pytest.mark.parametrize("calls", [300, 3000, 10_000, 30_000, 100_000])
def test_what_is_guessed_decides_fairly(factor: float, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 1.5 times the better, where the compilation takes up to 1.45 times as long as guessed, or as short."""
    monkeypatch.setattr(choice, "HEADER_SECONDS", 0.0)
    recorded = 1e-3
    guess = choose()
    guess.took(1, recorded)
    compile, compiled = factor * guess._cost(), recorded - guess._saved()
    best = min(compile + calls * compiled, calls * recorded)
    assert seconds(choose(), calls, compile, compiled, recorded) <= 1.5 * best


def test_measures_are_remembered(folder: Path) -> None:
    found = known(compile=2.5, compiled=1e-5, recorded=3e-4)
    (path,) = folder.iterdir()
    written = json.loads(path.read_text())
    assert written == pytest.approx({"compile": 2.5, "compiled": 1e-5, "recorded": 3e-4})
    assert found.known == Known(**written)
    other = record(lambda x: x.sin().cos() + 2, torch.zeros(3))
    assert choose(recorded=other).known is None


def test_a_time_that_is_missing_is_measured() -> None:
    chosen = known(compile=2.5, compiled=1e-5, recorded=None)
    assert not chosen.now(10**9)
    chosen.took(100, choice.TRIAL_SECONDS)
    assert chosen.now(10**9)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"compile": "a", "compiled": 1, "recorded": 1}', "null"])
def test_a_record_that_is_not_ours_is_passed_over(text: str, folder: Path) -> None:
    known(compile=2.5, compiled=1e-5, recorded=3e-4)
    (path,) = folder.iterdir()
    path.write_text(text)
    assert choose().known is None


def test_a_failure_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="pyro_scale")

    def fails() -> None:
        raise NativeError("no way")

    chosen = choose(True)
    assert chosen.now(10)
    assert chosen.compiled(fails) is None
    assert not chosen.now(10)
    assert chosen.how == "captured"
    assert [record.getMessage() for record in caplog.records] == ["Steps are not compiled, and run captured. no way."]


@pytest.mark.parametrize("value", ["yes", 1, None, 0])
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises(ArgumentError) as caught:
        ps.infer(regression, DATA, jit_compile=value)
    assert str(caught.value) == f"jit_compile is {value!r}; it must be True, False or 'auto'."
