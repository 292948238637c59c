"""What tuning makes of what it measures, one choice at a time and without steps."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from small_models import numbers
from test_loaders import Items, loader
from torch import Tensor

from pyro_scale.compile import compile_model
from pyro_scale.dense import SETTLING, Learned
from pyro_scale.errors import StartError
from pyro_scale.kernels import BAOAB, SGHMC, SGNHT
from pyro_scale.law import law_of, noise_gain
from pyro_scale.progress import Reporter
from pyro_scale.step_sizes import LARGEST, MOST_NOISE, ROOM, largest_step, suited
from pyro_scale.types import Position
from pyro_scale.warmup import HARDEST_CURVATURE, Tuned, Tuner

NUM_ROWS, SIZE, CHAINS = 400, 50, 300
Y = 3 + 2 * numbers(NUM_ROWS, seed=1)


def mean(y: Tensor) -> None:
    """Posterior sd of a mean of noise 2; its sign is not identified."""
    mu = pyro.sample("mu", dist.Normal(0.0, 100.0))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(mu.abs(), 2.0), obs=y)


def tuner(kernel: Any = None, data: Any = None, tolerance: float = 0.05, start: Any = None) -> Tuner:
    compiled = compile_model(mean, Y if data is None else data, batch_size=SIZE)
    starts: Position = {"mu": torch.full((CHAINS,), 1.0).double()} if start is None else start
    return Tuner(compiled, SGHMC() if kernel is None else kernel, starts, 0, tolerance, 10, Reporter(1, False, None))


def sampled(monkeypatch: pytest.MonkeyPatch, kernel: Any = None) -> Tuned:
    """From 360 rows of a loader's 400, and so without control variates."""
    monkeypatch.setattr("pyro_scale.held.MOST_ROWS", 360)
    monkeypatch.setattr("pyro_scale.held.LEAST_BATCHES", 2)
    return tuner(kernel, loader(Items(lambda i: Y[i], NUM_ROWS), SIZE)).tuned(0)


def test_half_of_the_tolerance_is_the_step_size_s_at_twice_the_mode_s_curvature() -> None:
    kernel = SGHMC()
    step_size = tuner(kernel, tolerance=0.02).tuned(0).kernel.step_size
    assert isinstance(step_size, float)
    assert step_size == largest_step(kernel, 0.01, HARDEST_CURVATURE, 0.0, NUM_ROWS / SIZE, LARGEST)
    assert abs(law_of(kernel, step_size, 2.0).sd - 1) == pytest.approx(0.01, rel=0.15)


def test_without_a_pilot_chains_start_as_wide_as_the_normal() -> None:
    """Sd of 300 within 4 standard errors; of a mean of 400 rows of sd 2 it is 0.1."""
    tuned = tuner().tuned(0)
    assert float(tuned.start["mu"].std()) == pytest.approx(0.1, rel=4 / 600**0.5)
    assert tuned.settling == SETTLING * tuned.thinning
    assert tuned.pilot_steps == 0


def test_noise_is_relative_to_momenta_and_most_of_it_is_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """In closed form, within 4 standard errors of 128 minibatches; V is what a permutation leaves of it."""
    tuned = sampled(monkeypatch)
    exact = NUM_ROWS / SIZE * float(Y.var()) / 4 * (NUM_ROWS - SIZE) / NUM_ROWS
    assert tuned.told["gradient_noise"] == pytest.approx(exact, rel=4 * (2 / 128) ** 0.5)
    kernel: Any = tuned.kernel
    response = law_of(SGHMC(), kernel.step_size).response
    share = noise_gain(response, NUM_ROWS / SIZE) / noise_gain(response, torch.inf)
    taken = float(kernel.gradient_variance["mu"]) * NUM_ROWS
    assert 0.05 < share < 0.95
    assert taken == pytest.approx(share * tuned.told["gradient_noise"], rel=1e-6)


def test_noise_bounds_the_step_size() -> None:
    """Of what minibatches add to the variance of draws, or of what a thermostat absorbs."""
    noise, epoch = 400.0, 50.0
    step_size = largest_step(SGHMC(), 0.05, 1.0, noise, epoch, LARGEST)
    added = noise * noise_gain(law_of(SGHMC(), step_size).response, epoch)
    assert 0.8 * MOST_NOISE < added <= MOST_NOISE
    absorbing = largest_step(SGNHT(), 0.5, 1.0, noise, epoch, LARGEST)
    assert 0.8 * MOST_NOISE < absorbing**2 * noise <= MOST_NOISE


def test_steps_are_stable_where_curvature_is_higher_than_was_seen() -> None:
    kernel = BAOAB()  # exact up to its limit
    step_size = largest_step(kernel, 0.05, 4.0, 0.0, 1.0, 10.0)
    assert law_of(kernel, step_size, ROOM * 4).sd < torch.inf
    assert law_of(kernel, 1.06 * step_size, ROOM * 4).sd == torch.inf


def test_control_variates_are_taken_where_they_repay_a_second_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is as noisy as without does not; one that takes away the noise does."""
    found = tuner()
    found.choices = (False, True)
    draws = torch.zeros(1, 8, 1).double()
    for noises, chosen in (({False: 30.0, True: 30.0}, False), ({False: 3000.0, True: 0.0}, True)):

        def measured(draws: Tensor, anchored: bool, noises: Any = noises) -> tuple[Any, bool]:
            return suited(SGHMC(), 0.025, 2.0, {}, noises[anchored], 8.0, LARGEST), anchored

        monkeypatch.setattr(found, "_suited", measured)
        found._choose(draws)
        assert found.anchored == chosen


def test_a_slow_window_lengthens_thinning_by_the_steps_between_its_positions() -> None:
    found = tuner()
    found._choose(torch.zeros(1, 8, 1).double())
    learned = Learned(torch.ones(4, 8, 1).double(), torch.ones(1, 1).double(), torch.full((1, 1), 2.0).double(), 6.0)
    draws = found._moved(learned, 5)
    assert found.slower == pytest.approx(6 * 5 / found.law.autocorrelation_time)
    assert float(draws.abs().max()) == 0  # the centers are the origin now
    assert float(found._position(torch.ones(1, 1).double())["mu"] - found._position(draws[0, :1])["mu"]) == (
        pytest.approx(2 * 2.0, rel=1e-4)  # of sd 2 a row
    )


def test_chains_go_on_from_pilot_chains_of_their_own_mode() -> None:
    start = {"mu": torch.tensor([1.0, -1.0, 2.0, -2.0, 1.0]).double()}
    found = tuner(start=start)
    assert found.num_modes == 2
    draws = torch.arange(8.0).double().expand(6, 8).unsqueeze(-1)
    assert found._picked(draws).flatten().tolist() == [0, 1, 2, 3, 4]
    assert found._picked(draws[:, :3]).flatten().tolist() == [0, 1, 0, 1, 0]  # of three, two have one in each mode


def test_a_window_that_diverges_is_run_again_at_half_the_step_size(monkeypatch: pytest.MonkeyPatch) -> None:
    found, seen = tuner(), []
    at = torch.zeros(8, 1).double()
    found._choose(at.unsqueeze(0))

    def explored(kernel: Any, *arguments: Any) -> None:
        seen.append(kernel.step_size)

    monkeypatch.setattr(found, "matrices", _With(found.matrices, explored))
    with pytest.raises(StartError, match=r"found no step size at which chains stay finite.*SGHMC\(step_size=\.\.\.\)"):
        found._run(at, 20, 1)
    ratios = [later / before for before, later in pairwise(seen)]
    assert len(seen) == 8
    assert ratios == pytest.approx([0.5] * 7)


class _With:
    """Matrices whose windows are something else."""

    def __init__(self, matrices: Any, explored: Any) -> None:
        self.matrices, self.explored = matrices, explored

    def __getattr__(self, name: str) -> Any:
        return getattr(self.matrices, name)


def test_a_kernel_keeps_its_other_settings() -> None:
    assert tuner(SGHMC(friction=2.5)).tuned(0).kernel.friction == 2.5  # type: ignore[attr-defined]
