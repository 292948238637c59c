"""`infer`: what it refuses before any work, how a run ends early, and how far its draws are from exact posteriors."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from pyro_scale.models import body_mass
from small_models import COUNTS, DATA, NUM_ROWS, Y, bounded, correlated, counts, known_variance, numbers, regression
from torch import Tensor

import pyro_scale as ps
from pyro_scale import inference, outcome, sample
from pyro_scale.collected import Plan
from pyro_scale.compile import CompiledModel, compile_model
from pyro_scale.errors import ArgumentError, NonFiniteError, StartError, StoppedError
from pyro_scale.kernels import METHODS, SGHMC, SGLD
from pyro_scale.posterior import Posterior
from pyro_scale.progress import Progress
from pyro_scale.sample import Chains, run_chains
from pyro_scale.types import BoundKernel, Kernel, Position, Schedule

SHORT: dict[str, Any] = {"num_samples": 3, "warmup_steps": 2, "thinning": 1, "num_chains": 2, "seed": 0}


def short(**options: Any) -> Posterior:
    return ps.infer(regression, DATA, **{**SHORT, **options})


# What is asked for


def test_a_run_by_default() -> None:
    posterior = ps.infer(regression, DATA, num_samples=5, seed=0)
    assert {name: tuple(value.shape) for name, value in posterior.draws.items()} == {
        "w": (4, 5, 2),
        "sigma": (4, 5),
        "precision": (4, 5),
    }
    assert all(value.dtype == torch.float64 for value in posterior.draws.values())
    settings = posterior.settings
    assert posterior.num_steps == settings["warmup_steps"] + 5 * settings["thinning"]
    assert settings["warmup_steps"] > settings["tuning"]["pilot_steps"] > 100
    assert posterior.sample_stats["lp"].shape == (4, 5)
    assert {"num_chains": 4, "num_samples": 5, "seed": 0, "ended_early": None}.items() <= settings.items()


def test_an_untuned_run_by_default() -> None:
    posterior = ps.infer(regression, DATA, SGHMC(step_size=0.1), num_samples=5, seed=0)
    assert posterior.num_steps == 5 * 10 // 2 + 5 * 10
    assert {"warmup_steps": 25, "thinning": 10, "tuning": {}}.items() <= posterior.settings.items()


def test_the_timing_covers_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Naps that nothing else can explain: each must be found where it was taken, and all of them in the sum."""
    nap = 0.2

    def slow(module: Any, name: str) -> None:
        function = getattr(module, name)

        def napping(*arguments: Any, **options: Any) -> Any:
            time.sleep(nap)
            return function(*arguments, **options)

        monkeypatch.setattr(module, name, napping)

    for module, name in ((inference, "compile_model"), (inference, "Tuner"), (outcome, "of_noise")):
        slow(module, name)
    for name in ("Run", "to_the_end", "constrain"):
        slow(sample, name)
    began = time.perf_counter()
    timing = short().timing
    whole = time.perf_counter() - began
    print(timing, whole)
    assert list(timing) == ["prepare", "tune", "capture", "compile", "sample", "constrain", "health"]
    assert timing.pop("compile") == 0  # so short a run does not repay it
    assert all(seconds >= nap for seconds in timing.values())
    assert 0.7 * whole < sum(timing.values()) <= whole


@pytest.mark.parametrize(("method", "kernel"), METHODS.items())
def test_a_name_and_a_kernel_without_a_step_size_mean_the_same(method: str, kernel: Any) -> None:
    options: dict[str, Any] = {"thinning": None} if hasattr(kernel, "fitting") else {}
    named, configured = (short(method=which, batch_size=5, **options) for which in (method, kernel()))
    assert torch.equal(named.draws["w"], configured.draws["w"])


def test_a_kernel_runs_as_configured() -> None:
    assert short(method=SGHMC(step_size=0.02)).step_size == 0.02
    one, other = (short(method=SGHMC(friction=friction)).draws["w"] for friction in (3.0, 1.0))
    assert not torch.equal(one, other)


def test_a_cyclical_schedule_keeps_draws_of_its_sampling_phases() -> None:
    """Without noise and from one start, the draws are those that every step gives, at the steps that sample."""
    cycle = ps.schedules.cyclical(0.3, cycle_steps=10, exploration=0.8)
    options: dict[str, Any] = {"num_chains": 1, "warmup_steps": 3, "seed": 0}
    kernel = SGHMC(step_size=cycle, temperature=0.0)
    found = ps.infer(regression, DATA, kernel, num_samples=4, thinning=10, **options)
    assert found.num_steps == 43
    assert found.settings["sampling_steps"] == 8
    assert "cyclical(initial=0.3, cycle_steps=10, exploration=0.8)" in found.settings["kernel"]
    unmasked = SGHMC(step_size=lambda step: cycle(step), temperature=0.0)
    every = ps.infer(regression, DATA, unmasked, num_samples=40, thinning=1, **options)
    assert every.settings["sampling_steps"] == 40
    # two draws of each cycle may be kept, after steps 9, 10, 19, ...; the first draw of `every` is after step 4
    chosen = [10 - 4, 20 - 4, 30 - 4, 40 - 4]
    assert torch.equal(found.draws["w"], every.draws["w"][:, chosen])
    assert torch.equal(found.sample_stats["lp"], every.sample_stats["lp"][:, chosen])
    assert found.step_size == cycle(42)
    with pytest.raises(ArgumentError, match=r"samples in 8 of the 40 steps after warm-up, too few for num_samples=20"):
        ps.infer(regression, DATA, kernel, num_samples=20, thinning=2, **options)


def test_all_rows_as_a_minibatch_is_the_full_batch() -> None:
    assert torch.equal(short(batch_size=NUM_ROWS).draws["w"], short().draws["w"])
    assert not torch.equal(short(batch_size=NUM_ROWS - 1).draws["w"], short().draws["w"])


def test_seeds() -> None:
    """The same gives the same, another another, None a fresh one that the posterior tells."""
    first = short(batch_size=5)
    assert torch.equal(first.draws["w"], short(batch_size=5).draws["w"])
    assert torch.equal(first.draws["w"], short(batch_size=5, seed=np.int64(0)).draws["w"])
    assert not torch.equal(first.draws["w"], short(batch_size=5, seed=1).draws["w"])
    tiny = SGLD(step_size=1e-6)  # from wherever a fresh seed starts, no step leads to infinity
    fresh, other = short(method=tiny, seed=None), short(method=tiny, seed=None)
    assert fresh.settings["seed"] != other.settings["seed"]
    assert torch.equal(fresh.draws["w"], short(method=tiny, seed=fresh.settings["seed"]).draws["w"])


def test_chains_start_apart() -> None:
    """Within 2 of 0 in unconstrained space, in every coordinate, to within one tiny step without noise."""
    posterior = short(method=SGLD(step_size=1e-12, temperature=0.0), warmup_steps=0, num_chains=20)
    start = torch.cat([posterior.draws["w"][:, 0], posterior.draws["sigma"][:, :1].log()], dim=1)
    assert start.abs().max() < 2 + 1e-3
    assert (start.std(0) > 0.5).all()
    assert len(start.unique()) == 60


def test_every_generator_has_a_seed_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    run_all, start = inference.run_chains, inference.initial_positions

    def run(*arguments: Any, **options: Any) -> Chains:
        seeds.extend(arguments[4])
        return run_all(*arguments, **options)

    def place(compiled: CompiledModel, initial: Any, chain_seeds: list[int]) -> Position:
        seeds.extend(chain_seeds)
        return start(compiled, initial, chain_seeds)

    monkeypatch.setattr(inference, "run_chains", run)
    monkeypatch.setattr(inference, "initial_positions", place)
    short(num_chains=3)
    assert len(seeds) == len(set(seeds)) == 5


def test_whole_numbers_may_be_numpy_s() -> None:
    sizes = {name: np.int64(value) for name, value in SHORT.items()}
    posterior = short(**sizes)
    assert torch.equal(posterior.draws["w"], short().draws["w"])
    assert type(posterior.settings["num_samples"]) is int


@pytest.mark.parametrize("keep", [["sigma", "precision"], ("precision", "sigma"), {"sigma", "precision"}])
def test_keep(keep: Any) -> None:
    kept = short(keep=keep)
    assert kept.draws.keys() == {"sigma", "precision"}
    assert torch.equal(kept.draws["sigma"], short().draws["sigma"])


def test_warm_up_can_be_saved() -> None:
    posterior = short(warmup_steps=5, thinning=2, save_warmup=True)
    warmup = posterior.add_groups("warmup_posterior")["warmup_posterior"]
    assert warmup["w"].shape == (2, 2, 2)


@pytest.mark.parametrize("progress", [True, False])
def test_progress_may_be_shown_or_not(progress: bool, capfd: pytest.CaptureFixture[str]) -> None:
    """Not in files and pipes, as here: a bar would fill them."""
    assert torch.equal(short(progress=progress).draws["w"], short().draws["w"])
    assert capfd.readouterr() == ("", "")


# What is refused


@dataclass(frozen=True)
class WithoutDefault:
    """A kernel of somebody else's, which follows the protocol and no more."""

    step_size: float | Schedule | None = None
    temperature: float | Schedule = 1.0

    def bind(self, target: Any, num_data: int) -> BoundKernel:
        return SGLD(step_size=self.step_size).bind(target, num_data)


class OnlyBinds:
    def bind(self, target: Any, num_data: int) -> BoundKernel:
        raise AssertionError


WHOLE = "it must be a whole number of at least"
SEED = "it must be a whole number from 0 to 2**63 - 1, or None for a fresh one."
METHOD = f"it must be one of {', '.join(map(repr, METHODS))}, or a kernel object, as ps.kernels.SGHMC(step_size=0.01)."
REFUSED: list[tuple[dict[str, Any], str]] = [
    *[({name: bad}, f"{name} is {bad!r}; {WHOLE} 1.")
      for name in ("num_samples", "num_chains", "thinning") for bad in (0, -1, 1.5, True, "3")],
    *[({"warmup_steps": bad}, f"warmup_steps is {bad!r}; {WHOLE} 0.") for bad in (-1, 1.5, True)],
    ({"num_samples": None}, f"num_samples is None; {WHOLE} 1."),
    *[({"seed": bad}, f"seed is {bad!r}; {SEED}") for bad in (-1, 1.5, "a", True, 2**63)],
    ({"method": "nuts"}, "method is 'nuts', which needs all rows at every step: call ps.diagnostics.nuts."),
    ({"method": "hmc"}, f"method is 'hmc'; {METHOD}"),
    ({"method": "SGHMC"}, f"method is 'SGHMC'; {METHOD}"),
    ({"method": SGHMC}, f"method is the class SGHMC; {METHOD}"),
    ({"method": 3}, f"method is a int; {METHOD}"),
    ({"method": None}, f"method is a NoneType; {METHOD}"),
    ({"method": OnlyBinds()}, f"method is a OnlyBinds; {METHOD}"),
    ({"bias_tolerance": 0.0}, "infer: bias_tolerance is 0.0; it must be a positive finite number."),
    ({"keep": "w"}, "keep is the string 'w'; it must be a list of site names, as ['w']."),
    ({"keep": ["w", "nope"]}, "keep names 'nope'; the sites with draws are 'w', 'sigma', 'precision'."),
    ({"keep": ["obs"]}, "keep names 'obs'; the sites with draws are 'w', 'sigma', 'precision'."),
    ({"keep": []}, "keep is empty; name at least one of 'w', 'sigma', 'precision', or None for the default."),
    ({"keep": [1]}, "keep names '1'; the sites with draws are 'w', 'sigma', 'precision'."),
    ({"keep": 1}, "keep is 1; it must be a list of site names, or None for the default."),
    *[({"batch_size": bad}, f"batch_size is {bad!r}; it must be a whole number from 1 to the 20 rows of data, or None")
      for bad in (0, -1, 21, 2.0, True)],
    ({"device": "abacus"}, "device is 'abacus', "),
    ({"dtype": torch.int64}, "dtype is torch.int64; "),
    ({"callback": "print"}, "callback is 'print'; it must be a function of one argument, a Progress, that returns"),
    ({"callback": True}, "callback is True; it must be a function of one argument, a Progress, that returns True"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_bad_arguments_are_refused_before_any_step(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "run_chains", None)
    with pytest.raises(ArgumentError, match="^" + re.escape(message)):
        short(**options)


def test_a_kernel_of_somebody_else_s_runs() -> None:
    posterior = short(method=WithoutDefault(step_size=0.01))
    assert torch.equal(posterior.draws["w"], short(method=SGLD(step_size=0.01)).draws["w"])
    tuned = short(method=WithoutDefault())
    assert torch.equal(tuned.draws["w"], short(method=SGLD()).draws["w"])


def test_a_kernel_that_cannot_be_tuned_needs_a_step_size_of_its_own() -> None:
    with pytest.raises(ArgumentError, match=r"^WithoutDefault has no step_size and no default for it"):
        short(method=WithoutDefault(temperature=0.0))
    assert short(method=SGHMC(temperature=0.0)).step_size == SGHMC.default_step_size


# Values that are not finite


POISSON: dict[str, Any] = {"model": counts, "data": COUNTS, "seed": 3, "warmup_steps": 0, "thinning": 1}
MATRIX = {"y": torch.stack([Y, Y.flip(0)], 1)}


def not_finite(caught: pytest.ExceptionInfo[NonFiniteError]) -> tuple[int, int, str]:
    """Steps done, chain and reason that the message names."""
    pattern = (
        r"The run ended early: after (\d+) of \d+ steps chain (\d) is not finite: (.*)\. The usual cause is a "
        r"step_size too large for the curvature: it is .* here; try a tenth of it, or standardise the covariates\."
    )
    found = re.match(pattern, str(caught.value))
    assert found, str(caught.value)
    return int(found[1]), int(found[2]), found[3]


@pytest.mark.parametrize("batch_size", [None, 5])
@pytest.mark.parametrize("kernel", [SGLD(step_size=2.0), SGHMC(step_size=0.9)], ids=["SGLD", "SGHMC"])
def test_an_exploding_run_gives_the_draws_it_made(kernel: Kernel, batch_size: int | None) -> None:
    """The last one kept is the one before the position whose log density the message is about."""
    run = {**POISSON, "batch_size": batch_size, "method": kernel}
    with pytest.raises(NonFiniteError) as caught:
        ps.infer(**run, num_samples=300, num_chains=3)
    steps, chain, reason = not_finite(caught)
    assert reason in ("site 'obs' has log density nan", "site 'obs' has log density -inf")
    assert f"it is {kernel.step_size:g} here" in str(caught.value)
    assert str(caught.value).endswith(f"This error's `posterior` holds the draws made before: {steps - 1} a chain.")
    posterior = caught.value.posterior
    assert posterior.draws["w"].shape == (3, steps - 1, 2)
    assert all(torch.isfinite(value).all() for value in [*posterior.draws.values(), *posterior.sample_stats.values()])
    assert posterior.num_steps == steps
    assert posterior.settings["ended_early"] in str(caught.value)
    if steps > 2:
        shorter = ps.infer(**run, num_samples=steps - 1, num_chains=3)
        assert torch.equal(shorter.draws["w"], posterior.draws["w"])
    assert 0 <= chain < 3


@pytest.mark.parametrize("batch_size", [None, 5])
@pytest.mark.parametrize("chain", [0, 2])
def test_the_chain_that_fails_is_named(chain: int, batch_size: int | None) -> None:
    """Counts of exp(1000) have no density; the two other chains start at 0."""
    model = compile_model(counts, COUNTS, batch_size=batch_size)
    start = torch.zeros(3, 2, dtype=torch.float64)
    start[chain] = 1000.0
    plan = Plan(num_samples=5, warmup_steps=0, thinning=1, num_chains=3, keep=("w",))
    ending = run_chains(model, SGLD(step_size=1e-3), plan, {"w": start}, (1, 2)).ending
    assert ending is not None and ending.failed
    pattern = f"after 0 of 5 steps chain {chain} is not finite: site 'obs' has log density (nan|-inf)[.] .*"
    assert re.fullmatch(pattern, ending.reason), ending.reason


def test_no_draw_before_the_failure_no_posterior() -> None:
    with pytest.raises(NonFiniteError) as caught:
        ps.infer(**{**POISSON, "warmup_steps": 1000}, method=SGLD(step_size=2.0), num_samples=3, num_chains=3)
    not_finite(caught)
    assert caught.value.posterior is None
    assert str(caught.value).endswith("or standardise the covariates.")


def test_a_position_that_is_not_finite_is_named() -> None:
    """The gradient is finite, but a step along it leaves the numbers."""
    with pytest.raises(NonFiniteError) as caught:
        short(method=SGLD(step_size=1e308, temperature=0.0))
    steps, _, reason = not_finite(caught)
    assert steps == 1
    assert re.fullmatch(r"the position of site 'w'(, 'sigma')? is not finite", reason)


@pytest.mark.parametrize(
    ("model", "data", "step_size", "reason"),
    [
        (bounded, {"y": 0.8 * Y}, 0.1, r"site 'obs' has log density nan"),
        (correlated, MATRIX, 0.5, r"the model raises LinAlgError: linalg\.cholesky: .*not positive-definite.*"),
    ],
    ids=["beyond the bound", "no covariance matrix"],
)
@pytest.mark.parametrize("batch_size", [None, 5])
def test_a_finite_position_without_a_density_is_told_apart(
    model: Callable[..., None], data: dict[str, Tensor], step_size: float, reason: str, batch_size: int | None
) -> None:
    with pytest.raises(NonFiniteError) as caught:
        ps.infer(model, data, SGLD(step_size=step_size), num_samples=500, warmup_steps=0, thinning=1, num_chains=3,
                 batch_size=batch_size, seed=3)  # fmt: skip
    steps, _, found = not_finite(caught)
    assert re.fullmatch(reason, found)
    (draws,) = caught.value.posterior.draws.values()
    assert draws.shape == (3, steps - 1)
    assert draws.abs().max() < 1  # where both models have a density


def test_no_start() -> None:
    with pytest.raises(StartError, match="site 'obs'"):
        ps.infer(known_variance, {"y": Y * 1e200}, seed=0)


# Somebody's wish


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """The callback is called at every step."""
    monkeypatch.setattr("pyro_scale.progress.CALLBACK_INTERVAL", 0.0)


@pytest.mark.usefixtures("always")
def test_the_callback_is_told_how_far_the_run_is() -> None:
    seen: list[Progress] = []
    short(num_samples=4, warmup_steps=3, thinning=2, callback=lambda progress: seen.append(progress))
    assert [progress.step for progress in seen] == [*range(12), 11]  # at last the last draw is evaluated
    assert {progress.num_steps for progress in seen} == {11}
    assert [progress.num_draws for progress in seen] == [0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4]
    seconds = [progress.seconds for progress in seen]
    assert seconds == sorted(seconds) and seconds[0] >= 0


def test_a_short_run_calls_back_at_its_end() -> None:
    seen: list[Progress] = []
    short(callback=lambda progress: seen.append(progress))
    assert seen[-1][:3] == (5, 5, 3)
    assert len(seen) <= 4  # of 7 times that it could


@pytest.mark.usefixtures("always")
def test_a_callback_stops_the_run_and_keeps_its_draws(caplog: pytest.LogCaptureFixture) -> None:
    whole = short(num_samples=10)
    caplog.clear()
    stopped = short(num_samples=10, callback=lambda progress: progress.step == 6)
    assert torch.equal(stopped.draws["w"], whole.draws["w"][:, :3])
    assert torch.equal(stopped.sample_stats["lp"], whole.sample_stats["lp"][:, :3])
    assert stopped.num_steps == 6
    assert stopped.settings["ended_early"] == "stopped by the callback after 6 of 12 steps"
    (record,) = [record for record in caplog.records if record.name == "pyro_scale"]
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        "The run ended early: stopped by the callback after 6 of 12 steps; it has 3 of 10 draws a chain."
    )


def test_to_stop_at_the_end_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    finished = short(callback=lambda progress: progress.step == progress.num_steps)
    assert torch.equal(finished.draws["w"], short().draws["w"])
    assert finished.settings["ended_early"] is None
    assert not caplog.records


@pytest.mark.usefixtures("always")
def test_a_run_stopped_before_its_first_draw_has_nothing_to_give() -> None:
    message = (
        "^The run ended early: stopped by the callback after 2 of 5 steps, before the first draw. Let it run longer, "
        "or lower warmup_steps.$"
    )
    with pytest.raises(StoppedError, match=message):
        short(callback=lambda progress: progress.step == 2)


@pytest.mark.usefixtures("always")
def test_an_error_of_the_callback_is_the_user_s() -> None:
    def fails(progress: Progress) -> None:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match=r"^mine$"):
        short(callback=fails)


@pytest.mark.usefixtures("always")
def test_gradients_work_in_the_callback() -> None:
    short(callback=lambda progress: torch.ones((), requires_grad=True).exp().backward())


def interrupting(step: int) -> Callable[[Progress], None]:
    def callback(progress: Progress) -> None:
        if progress.step == step:
            raise KeyboardInterrupt

    return callback


@pytest.mark.usefixtures("always")
def test_ctrl_c_gives_the_draws_so_far(caplog: pytest.LogCaptureFixture) -> None:
    interrupted = short(num_samples=10, callback=interrupting(6))
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert torch.equal(interrupted.draws["w"], short(num_samples=10).draws["w"][:, :3])
    assert interrupted.settings["ended_early"] == "interrupted after 6 of 12 steps"


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("step", [1, 2, 3])
def test_ctrl_c_before_the_first_draw_is_ctrl_c(step: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        short(callback=interrupting(step))


@pytest.mark.parametrize(("place", "last_call"), [("_settle", 5), ("took", 8)])
def test_ctrl_c_amid_a_step(place: str, last_call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before or after a draw is kept: there is an lp for each."""
    from pyro_scale.collected import Collected

    original = getattr(Collected, place)
    calls = []

    def interrupted(self: Collected, *arguments: Any) -> None:
        original(self, *arguments)
        calls.append(None)
        if len(calls) == last_call:
            raise KeyboardInterrupt

    monkeypatch.setattr(Collected, place, interrupted)
    posterior = short(num_samples=10)
    assert posterior.draws["w"].shape[:2] == posterior.sample_stats["lp"].shape == (2, 5)


def test_ctrl_c_in_the_model_s_first_run_is_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pyro_scale.capture.record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        short()


# Accuracy

CHAINS = 32


def assert_moments(draws: Tensor, mean: Tensor, sd: Tensor, *, low: float, high: float, name: str) -> None:
    """Mean and sd of draws `(CHAINS, n, *site)`, judged by how independent chains disagree.

    The mean is allowed 0.02 sd of bias, the sd a relative bias from `low` to `high`. On top of that come 5 standard
    errors, which Student's t with 31 degrees of freedom exceeds with probability 2e-5; about 50 comparisons in this
    file make it one seed in 1000.
    """
    shift = (draws.mean(1) - mean) / sd
    error = shift.std(0) / math.sqrt(CHAINS)
    print(f"{name}: means off by {shift.mean(0).tolist()} sd, standard errors {error.tolist()}")
    assert (shift.mean(0).abs() < 0.02 + 5 * error).all()
    assert (error < 0.05).all(), "the test has lost its power"
    square = ((draws - mean) ** 2).mean(1) / sd**2
    ratio = square.mean(0).sqrt()
    error = square.std(0) / math.sqrt(CHAINS) / (2 * ratio)
    print(f"{name}: sd ratios {ratio.tolist()}, standard errors {error.tolist()}")
    assert (1 + low - 5 * error < ratio).all() and (ratio < 1 + high + 5 * error).all()
    assert (error < 0.05).all(), "the test has lost its power"


@pytest.mark.parametrize(
    ("kernel", "batch_size", "num_samples", "high"),
    [
        # curvatures per datum of this posterior go from 0.5 to 2.2; variance 1 / (1 - step_size * curvature / 2)
        pytest.param(SGLD(step_size=0.04), None, 400, 0.023, id="SGLD-full batch"),
        # relative bias of the sd: step_size^2 * curvature / 8 at most
        pytest.param(SGHMC(step_size=0.1), None, 200, 0.003, id="SGHMC-full batch"),
        # independent batches of 200 among 724 add step_size * curvature / 2 * (724 / 200 - 1) to the relative variance;
        # those of a permutation add less
        pytest.param(SGLD(step_size=0.04), 200, 400, 0.079, id="SGLD-minibatches"),
        pytest.param(SGHMC(step_size=0.04), 200, 400, 0.057, id="SGHMC-minibatches"),
    ],
)
def test_moments_of_the_exact_posterior(kernel: Kernel, batch_size: int | None, num_samples: int, high: float) -> None:
    """Linear regression with unknown variance on 724 rows: multivariate t and inverse gamma, exactly."""
    problem = body_mass()
    posterior = ps.infer(problem.model, problem.data, kernel, num_samples=num_samples, warmup_steps=1500, thinning=8,
                         num_chains=CHAINS, batch_size=batch_size, seed=1, progress=False)  # fmt: skip
    for name, reference in problem.reference.items():
        assert_moments(posterior.draws[name], reference.mean, reference.sd, low=-0.005, high=high, name=name)


@pytest.mark.parametrize("temperature", [0.25, 1.0])
def test_temperature_scales_the_exact_variance(temperature: float) -> None:
    """One Gaussian mean with its prior: variance temperature / (N + 1) about the posterior mean."""
    y = 3.0 + numbers(50, seed=4)
    kernel = SGHMC(step_size=0.1, temperature=temperature)
    posterior = ps.infer(known_variance, {"y": y}, kernel, num_samples=150, warmup_steps=300, thinning=10,
                         num_chains=CHAINS, seed=2, progress=False)  # fmt: skip
    sd = torch.tensor(math.sqrt(temperature / 51))
    assert_moments(posterior.draws["mu"], y.sum() / 51, sd, low=-0.001, high=0.005, name=f"T={temperature}")
