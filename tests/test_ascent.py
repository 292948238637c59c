"""Climbs by Adam on minibatches: torch's own Adam, modes in closed form, and what is done about bad steps."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from small_models import numbers
from torch import Tensor

from pyro_scale import tree
from pyro_scale.ascent import FIRST_RATE, WINDOW, Ascent, _Moving, _rise
from pyro_scale.compile import compile_model

NUM_ROWS = 50
SCALES = torch.tensor([1e-3, 1.0, 1e3]).double()
Y = SCALES * (numbers(NUM_ROWS, 3, seed=1) + torch.tensor([4.0, -2.0, 30.0]).double())
MODE = Y.mean(0)
START = {"w": torch.zeros(3).double()}
UNITS = {"w": SCALES}


def means(y: Tensor) -> None:
    """Of columns in three units, with priors that say next to nothing."""
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1e6 * SCALES).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(w, SCALES).to_event(1), obs=y)


class Calls:
    """Counts windows."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self) -> None:
        self.number += 1


def ascent(batch_size: int | None, seed: int = 0, calls: Calls | None = None) -> Ascent:
    return Ascent(compile_model(means, {"y": Y}, batch_size=batch_size), START, seed, calls or Calls())


def test_steps_are_those_of_adam() -> None:
    start = {"a": numbers(2, seed=2), "b": numbers(2, 3, seed=3)}
    units = {"a": torch.tensor([0.1, 5.0]).double(), "b": torch.full((2, 3), 2.0).double()}
    moving = _Moving(start, units, 7)
    # in units of the coordinates
    z = {name: (leaf / units[name]).clone().requires_grad_() for name, leaf in start.items()}
    optimizer = torch.optim.Adam(list(z.values()), maximize=True)
    for step, rate in enumerate((0.1, 0.1, 0.03, 0.2, 0.01)):
        gradient = {name: numbers(*leaf.shape, seed=10 + step) * leaf for name, leaf in start.items()}
        moving.step(gradient, rate)
        optimizer.param_groups[0]["lr"] = rate
        for name, leaf in z.items():
            leaf.grad = gradient[name] * units[name] / 7
        optimizer.step()
        for name, leaf in z.items():
            assert torch.allclose(moving.position[name], leaf.detach() * units[name], rtol=1e-9)
    assert torch.equal(start["a"], numbers(2, seed=2))  # the start is left alone


@pytest.mark.parametrize("batch_size", [None, 20])
def test_it_climbs_to_the_mode_in_the_units_given(batch_size: int | None) -> None:
    """From 30 sds away, to within a posterior sd: the rate is doubled on the way, and halved at the end."""
    calls = Calls()
    climb = ascent(batch_size, calls=calls).climb(START, UNITS, 4000)
    error = (climb.position["w"] - MODE) / SCALES * NUM_ROWS**0.5
    print(error.tolist(), climb.num_steps)
    assert climb.converged
    assert float(error.abs().max()) < (0.1 if batch_size is None else 1)
    assert calls.number * WINDOW == climb.num_steps < 2500
    log_density = dist.Normal(MODE, SCALES).log_prob(Y).sum() + dist.Normal(0.0, 1e6 * SCALES).log_prob(MODE).sum()
    assert climb.log_posterior == pytest.approx(float(log_density), rel=0.05)


@pytest.mark.parametrize("most", [1, 60, 130])
def test_it_takes_no_more_steps_than_it_may(most: int) -> None:
    climb = ascent(20).climb(START, UNITS, most)
    assert climb.num_steps == most
    assert not climb.converged


def test_in_the_second_half_of_the_steps_the_rate_falls_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    monkeypatch.setattr(_Moving, "step", lambda moving, gradient, rate: rates.append(rate))
    ascent(None).climb(START, UNITS, 4 * WINDOW)
    whole, last = rates[:WINDOW], rates[3 * WINDOW :]
    assert whole == [FIRST_RATE] * WINDOW
    left = [(WINDOW - step) / WINDOW for step in range(WINDOW)]
    assert [rate / last[0] for rate in last] == pytest.approx(left)


def test_where_it_starts_at_the_mode_it_stops_soon() -> None:
    climb = ascent(None).climb({"w": MODE.clone()}, UNITS, 10_000)
    assert climb.converged
    assert climb.num_steps <= 2000


def test_the_same_seed_climbs_the_same_way() -> None:
    one, same, other = (ascent(20, seed).climb(START, UNITS, 60).position["w"] for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_a_window_that_is_not_finite_is_taken_back() -> None:
    """A cliff: beyond 1 the density is not a number, and the mode is at its edge."""

    def cliff(y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(y)):
            pyro.factor("rise", 2 * w + (1 - w).sqrt() + 0 * y)

    compiled = compile_model(cliff, {"y": torch.zeros(5).double()})
    start = {"w": torch.tensor(-3.0).double()}
    climb = Ascent(compiled, start, 0, Calls()).climb(start, {"w": torch.tensor(1.0).double()}, 2000)
    print(climb)
    # where 2 w + sqrt(1 - w) is highest: 1 - w = 1 / 16
    assert torch.isfinite(climb.position["w"])
    assert 0.5 < float(climb.position["w"]) < 1


def test_without_a_finite_window_it_ends_where_it_began() -> None:
    climber = ascent(None)
    nothing = tree.map(lambda leaf: leaf * torch.nan, START), torch.tensor(torch.nan)
    climber.gradient = lambda position, batch: nothing
    climb = climber.climb(START, UNITS, 200)
    assert torch.equal(climb.position["w"], START["w"])
    assert not climb.converged and climb.log_posterior == -torch.inf


def test_rises_are_in_standard_errors() -> None:
    before, now = numbers(50, seed=4), numbers(50, seed=5) + 3
    expected = (now.mean() - before.mean()) / ((before.var() + now.var()) / 50) ** 0.5
    assert _rise(before, now) == pytest.approx(float(expected), rel=1e-12)
    assert _rise(torch.zeros(1).double(), torch.ones(1).double()) > 1e10
