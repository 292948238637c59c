"""What warm-up does with matrices, one piece at a time, against exact answers."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from small_models import numbers
from torch import Tensor

from pyro_scale import dense as dense_module
from pyro_scale import tree
from pyro_scale.compile import CompiledModel, compile_model
from pyro_scale.dense import SETTLING, Dense, Learned
from pyro_scale.gradient import Frame
from pyro_scale.kernels import BAOAB
from pyro_scale.progress import Reporter
from pyro_scale.types import Position
from pyro_scale.whitening import Whitened

NUM_ROWS, CHAINS = 100, 48
COVARIANCE = torch.tensor([[1.0, 0.8], [0.8, 1.0]]).double()
Y = numbers(NUM_ROWS, 2, seed=1) + torch.tensor([3.0, -1.0]).double()
QUIET = Reporter(1, False, None)


def means(y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 100.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.MultivariateNormal(w, COVARIANCE), obs=y)


def signs(y: Tensor) -> None:
    """Of a no sign is identified; the modes of b have unequal curvature."""
    a = pyro.sample("a", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(a.abs(), torch.where(a > 0, 1.0, 1.1)), obs=y)


def nowhere() -> None:
    """Called where it is told of steps, which nobody stops."""


def matrices(compiled: CompiledModel) -> Dense:
    return Dense(compiled, compiled.num_data**-0.5, torch.Generator().manual_seed(0))


def starts(number: int, size: int = 2) -> Position:
    return {"w": numbers(number, size, seed=2)}


def test_the_mode_of_a_normal_posterior() -> None:
    compiled = compile_model(means, {"y": Y})
    modes, best = matrices(compiled).ascended(starts(4), nowhere)
    precision = NUM_ROWS * torch.linalg.inv(COVARIANCE) + 1e-4 * torch.eye(2).double()
    assert len(modes) == 1
    exact = torch.linalg.solve(precision, torch.linalg.inv(COVARIANCE) @ Y.sum(0))
    assert torch.allclose(best.position["w"], exact, atol=1e-8)
    assert torch.allclose(best.negative_hessian, precision, rtol=1e-6)


def test_coordinates_suit_all_modes() -> None:
    """Their curvature is the mean of those of the modes, 100 and 100 / 1.21."""
    compiled = compile_model(signs, {"y": 2 + 0.1 * numbers(NUM_ROWS, seed=3)})
    start = {"a": torch.tensor([1.0, -1.0, 2.0]).double()}
    modes, best = matrices(compiled).ascended(start, nowhere)
    assert [float(mode.position["a"].sign()) for mode in modes] == [1.0, -1.0]
    assert float(best.position["a"]) > 0
    assert float(best.negative_hessian) == pytest.approx(50 + 50 / 1.21 + 0.01, rel=1e-6)


def test_without_a_mode_curvature_is_that_of_the_first_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_scale.mode.MAX_NEWTON_STEPS", 5)

    def falling(y: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1e3))
        with pyro.plate("data", len(y)):
            pyro.factor("rise", (a / 1e3) ** 2 / 2 + a + 0 * y)

    compiled = compile_model(falling, {"y": torch.zeros(3).double()})
    modes, best = matrices(compiled).ascended({"a": torch.tensor([0.5, 4.0]).double()}, nowhere)
    assert list(modes) == []
    assert float(best.position["a"]) == 0.5


def test_the_largest_curvature_is_of_all_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Per datum, of a matrix written out; of a share of the rows, where they are more than are looked at."""
    compiled = compile_model(means, {"y": Y})
    pieces = matrices(compiled)
    _, best = pieces.ascended(starts(1), nowhere)
    plain = Whitened(compiled, best._replace(negative_hessian=NUM_ROWS * torch.eye(2).double()), NUM_ROWS)
    exact = float(torch.linalg.eigvalsh(torch.linalg.inv(COVARIANCE)).max())
    assert pieces.curvatures(plain, numbers(3, 2, seed=4)).tolist() == pytest.approx([exact] * 3, rel=1e-4)
    monkeypatch.setattr(dense_module, "CURVATURE_ROWS", 10)
    assert pieces.curvatures(plain, numbers(3, 2, seed=4)).tolist() == pytest.approx([exact] * 3, rel=1e-2)


def window(step_size: float, groups: int = 1, number: int = 150) -> Learned | None:
    """Of chains in coordinates of unit curvature, in which the posterior has correlation 0.8."""
    compiled = compile_model(means, {"y": Y})
    pieces = matrices(compiled)
    _, best = pieces.ascended(starts(1), nowhere)
    frame = Frame(Whitened(compiled, best._replace(negative_hessian=NUM_ROWS * torch.eye(2).double()), NUM_ROWS))
    start = tree.map(lambda leaf: leaf + 0.1 * numbers(CHAINS, 2, seed=5), best.position)
    centers = torch.zeros(groups, 2).double()
    return pieces.explored(BAOAB(step_size=step_size), number, 4, start, (0, 1), frame, centers, QUIET)


def test_a_window_teaches_means_and_covariance() -> None:
    """About 48 * 100 / time draws: their covariance is within 4 standard errors; chains far apart stay apart."""
    learned = window(0.3)
    assert learned is not None
    effective = CHAINS * 100 / learned.time
    print(effective, learned.spread @ learned.spread.T)
    assert learned.draws.shape == (100, CHAINS, 2)
    assert 1 <= learned.time < 10
    assert learned.centers.shape == (1, 2)
    assert float(learned.centers.abs().max()) < 4 * (NUM_ROWS * effective) ** -0.5
    assert torch.allclose(learned.spread @ learned.spread.T, COVARIANCE, atol=4 * (2 / effective) ** 0.5)
    assert learned.spread[0, 1] == 0  # a lower triangle


def test_curvature_at_draws_corrects_coordinates_that_few_draws_could_not() -> None:
    """Of 12 draws a chain, little independent: the curvature of a normal posterior is the same at each of them."""
    learned = window(0.05, number=18)
    assert learned is not None
    mean = (32 * torch.linalg.inv(COVARIANCE) + torch.eye(2).double()) / 33
    told = learned.spread @ learned.spread.T
    print(learned.time, told)
    assert learned.time == 12
    assert (told - torch.linalg.inv(mean)).norm() < 0.2


def test_a_covariance_is_worth_its_independent_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    def factor(draws: Tensor, effective: float, curvature: Tensor) -> Tensor:
        told.append(effective)
        return torch.eye(2).double()

    monkeypatch.setattr(dense_module, "factor_of_spread", factor)
    learned = window(0.3)
    assert learned is not None
    assert told == [pytest.approx(100 * CHAINS / learned.time)]


def test_time_is_that_of_the_slower_of_mean_and_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of positions without memory whose width changes slowly: a sine of 60 positions, and then a mean that does."""
    times, white = torch.arange(150).double(), numbers(150, CHAINS, 2, seed=6)
    wave = (times / 10).sin().reshape(-1, 1, 1)
    found = []
    for positions in (white, white * (0.1 + wave.abs()), white + 3 * wave):
        monkeypatch.setattr(dense_module, "explore", lambda *arguments, at=positions: {"w": 0.1 * at})
        learned = window(0.3)
        assert learned is not None
        found.append(learned.time)
    print(found)
    assert found[0] == 1 and found[1] > 1.5 and found[2] > 4


def test_centers_are_of_their_own_chains() -> None:
    learned = window(0.3, groups=3)
    assert learned is not None
    expected = [learned.draws[:, each::3].mean((0, 1)) for each in range(3)]
    assert torch.allclose(learned.centers, torch.stack(expected))


def test_a_chain_that_is_far_away_has_diverged_though_its_numbers_are_finite() -> None:
    """Of curvature 5 a step of 1 is too long; after few steps nothing has overflown yet."""
    assert window(1.0, number=12) is None
    assert window(0.8, number=12) is not None


def test_settling() -> None:
    pieces = matrices(compile_model(means, {"y": Y}))
    assert pieces.settling(70, 7) == 7 * SETTLING
    assert pieces.settling(30, 7) == 30
    assert pieces.strength({"a": torch.tensor([1.0, 5.0]), "b": torch.zeros(0), "c": torch.tensor(2.0)}) == 5
