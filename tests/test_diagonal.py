"""What warm-up does with diagonals, one piece at a time, on models small enough for matrices."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from small_models import numbers
from torch import Tensor

from pyro_scale import climber, tree
from pyro_scale import diagonal as diagonal_module
from pyro_scale.climber import Climber
from pyro_scale.compile import CompiledModel, compile_model
from pyro_scale.dense import SETTLING, Dense, Learned
from pyro_scale.diagonal import Diagonal
from pyro_scale.fisher import Fisher
from pyro_scale.gradient import Frame
from pyro_scale.kernels import BAOAB
from pyro_scale.mode import find_mode
from pyro_scale.progress import Reporter
from pyro_scale.whitening import Whitened

NUM_ROWS = 80
SCALES = torch.tensor([1.0, 30.0, 0.01]).double()
X = numbers(NUM_ROWS, 3, seed=1) * SCALES
LABELS = (X[:, 0] + numbers(NUM_ROWS, seed=2) > 0).double()


def logistic(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 3 / SCALES).to_event(1))
    b = pyro.sample("b", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Bernoulli(logits=x @ w + b), obs=y)


def compiled(batch_size: int | None = 20) -> CompiledModel:
    return compile_model(logistic, {"x": X, "y": LABELS}, batch_size=batch_size)


def pieces(model: CompiledModel, num_samples: int = 100) -> Diagonal:
    return Diagonal(model, model.num_data**-0.5, torch.Generator().manual_seed(0), num_samples)


def nowhere() -> None:
    """Called while a mode is sought."""


def test_the_mode_is_that_of_matrices_and_its_curvature_their_diagonal() -> None:
    """Within 0.1 posterior sds; entries of the diagonal are estimates, with errors of the others of their rows."""
    model = compiled()
    starts = {"w": 0.1 * numbers(2, 3, seed=3) / SCALES, "b": numbers(2, seed=4)}
    modes, best = pieces(model).ascended(starts, nowhere)
    exact = find_mode(model, model.initial_position(0))
    off = tree.ravel(best.position) - tree.ravel(exact.position)
    print(
        float(off @ exact.negative_hessian @ off), (best.negative_hessian / exact.negative_hessian.diagonal()).tolist()
    )
    assert len(modes) == 1 and best.converged
    assert float(off @ exact.negative_hessian @ off) < 0.01
    assert torch.allclose(best.negative_hessian, exact.negative_hessian.diagonal(), rtol=0.3)
    assert best.log_posterior == pytest.approx(exact.log_posterior, abs=0.01)


def test_a_sample_of_the_rows_stands_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The curvature is that of all rows, and the mode near theirs: those of the samples are 4 away in variances."""
    monkeypatch.setattr(climber, "NEWTON_ROWS", 40)
    model = compiled()
    start = tree.map(torch.zeros_like, model.initial_position(0))
    exact = find_mode(model, model.initial_position(0))
    away, ratios = [], []
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        starts = tree.map(lambda leaf: leaf.unsqueeze(0), start)
        found = Climber(Fisher(model, generator), starts, 100, generator, nowhere)._newton(start)
        assert found is not None
        position, curvature = found
        off = tree.ravel(position) - tree.ravel(exact.position)
        away.append(float(off @ exact.negative_hessian @ off))
        ratios.append((curvature / exact.negative_hessian.diagonal()).log().mean())
    print(away, ratios)
    assert sum(away) / len(away) < 0.5
    assert float(torch.stack(ratios).mean().exp()) == pytest.approx(1, abs=0.2)


def signs(y: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(a.abs(), 1.0), obs=y)


def test_ends_of_climbs_that_differ_are_modes_of_their_own() -> None:
    model = compile_model(signs, {"y": 3 + numbers(NUM_ROWS, seed=5)}, batch_size=20)
    starts = {"a": torch.tensor([1.0, -1.0, 2.0, -4.0, 9.0]).double()}
    modes, best = pieces(model).ascended(starts, nowhere)
    assert len(modes) == 2  # of four climbs
    assert {float(mode.position["a"].sign()) for mode in modes} == {1.0, -1.0}
    assert float(best.negative_hessian) == pytest.approx(NUM_ROWS + 0.01, rel=1e-6)


def test_first_starts_are_within_the_posterior_where_it_is_narrowest() -> None:
    """Of correlation 0.8, a diagonal leaves a largest curvature of 1.8."""
    covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]]).double()

    def pair(y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 100.0).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("obs", dist.MultivariateNormal(w, covariance), obs=y)

    y = numbers(NUM_ROWS, 2, seed=9) @ torch.linalg.cholesky(covariance).T
    found = pieces(compile_model(pair, {"y": y}, batch_size=20))
    found.ascended({"w": torch.zeros(1, 2).double()}, nowhere)
    print(found.scatter)
    assert found.scatter == pytest.approx(1.8**-0.5, rel=0.15)


def whitened(model: CompiledModel, correlation: float = 0.0) -> Whitened:
    """In coordinates of unit curvature on average, some of it off the diagonal."""
    mode = find_mode(model, model.initial_position(0))
    return Whitened(model, mode._replace(negative_hessian=mode.negative_hessian.diagonal()), model.num_data)


@pytest.mark.parametrize("block", [4096, 30], ids=["one block", "unequal blocks"])
def test_the_largest_curvature_is_that_of_matrices(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within two per cent from below: by products it is found in its direction alone."""
    monkeypatch.setattr("pyro_scale.fisher.MOST_ROWS", block)
    model = compiled()
    frame, at = whitened(model), 0.3 * numbers(3, 4, seed=6)
    exact = Dense(model, 1.0, torch.Generator()).curvatures(frame, at)
    found = pieces(model).curvatures(frame, at)
    print(found.tolist(), exact.tolist())
    assert bool((found <= exact * (1 + 1e-6)).all() and (found > 0.97 * exact).all())


def test_where_products_are_not_finite_curvature_is_one() -> None:
    model = compiled()
    assert pieces(model).curvatures(whitened(model), torch.full((2, 4), torch.nan).double()).tolist() == [1.0]


def window(step_size: float, number: int) -> Learned | None:
    """Of chains that move in coordinates twice as wide as the posterior is."""
    y = numbers(NUM_ROWS, 3, seed=7)

    def means(y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 100.0).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("obs", dist.Normal(w, 1.0).to_event(1), obs=y)

    model = compile_model(means, {"y": y})
    mode = find_mode(model, model.initial_position(0))
    narrow = mode._replace(negative_hessian=torch.full((3,), NUM_ROWS / 4).double())
    frame = Frame(Whitened(model, narrow, NUM_ROWS))
    start = tree.map(lambda leaf: leaf + 0.1 * numbers(32, 3, seed=8), mode.position)
    reporter = Reporter(1, False, None)
    centers = torch.ones(1, 3).double() * 0.25
    return pieces(model).explored(BAOAB(step_size=step_size), number, 2, start, (0, 1), frame, centers, reporter)


def test_a_window_teaches_means_and_variances() -> None:
    learned = window(0.4, 300)
    assert learned is not None
    effective = 32 * 200 / learned.time
    print(effective, learned.centers, learned.spread)
    assert torch.allclose(learned.spread, torch.full((3,), 0.5).double(), rtol=5 * (2 * effective) ** -0.5)
    assert float(learned.centers.abs().max()) < 5 * 0.5 * (NUM_ROWS * effective) ** -0.5
    assert learned.draws.shape == (200, 32, 3)


def test_variances_are_worth_their_independent_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    def shrunk(variances: Tensor, effective: float) -> Tensor:
        told.append(effective)
        return torch.ones(3).double()

    monkeypatch.setattr(diagonal_module, "shrunk_variances", shrunk)
    learned = window(0.4, 300)
    assert learned is not None
    assert told == [pytest.approx(200 * 32 / learned.time)]


def test_a_short_window_teaches_neither() -> None:
    learned = window(0.01, 30)
    assert learned is not None
    assert torch.equal(learned.spread, torch.ones(3).double())
    assert torch.equal(learned.centers, torch.full((1, 3), 0.25).double())


def test_a_chain_that_is_far_away_has_diverged() -> None:
    """Curvature is 4: a step of 1 is at the limit, and 1.3 beyond it."""
    assert window(1.3, 12) is None


def test_large_models_keep_less_and_move_less() -> None:
    model = compiled()
    small = pieces(model)
    assert (small.chains, small.most_kept, small.most_thinning, list(small.choices)) == (8, 2000, 1000, [False, True])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diagonal_module, "LARGE", 3)
        large = pieces(model)
    assert (large.most_kept, large.noise_positions, list(large.choices)) == (300, 1, [False])
    assert small.settling(400, 7) == max(7 * SETTLING, 350)
    assert small.settling(40, 7) == 40
    assert pieces(model, num_samples=10).settling(400, 7) == 7 * SETTLING


def test_noise_is_that_of_nearly_all_coordinates() -> None:
    values = torch.arange(1.0, 1001.0)
    values[7] = 1e9
    assert pieces(compiled()).strength({"w": values}) == pytest.approx(991, abs=2)
