"""The kernel Stein discrepancy: against another library, what it says of damaged draws, and of noisy gradients."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from posterior_cases import exact_posterior, exact_regression, posterior_of
from posterior_cases import regression as known_noise
from pyro_scale.diagnostics import ksd, scores
from pyro_scale.diagnostics.stein import BLOCK, stein_discrepancy
from small_models import DATA, X, Y, numbers, regression, starts
from stein_thinning.kernel import vfk0_imq
from torch import Tensor

from pyro_scale.compile import CompiledModel, compile_model
from pyro_scale.errors import ArgumentError, MinibatchError, MissingModelError, PyroScaleError
from pyro_scale.posterior import Posterior


def of_stein_thinning(draws: Tensor, gradients: Tensor, c: float = 1.0, beta: float = -0.5) -> np.ndarray:
    """All values of the Stein kernel, `(n, n)`; that package's c is squared."""
    x, s = draws.numpy(), gradients.numpy()
    i, j = (index.ravel() for index in np.indices((len(x), len(x))))
    values = vfk0_imq(x[i], x[j], s[i], s[j], np.identity(x.shape[1]), c=c**2, beta=beta)
    return values.reshape(len(x), len(x))


@pytest.mark.parametrize(("c", "beta"), [(1.0, -0.5), (2.5, -0.3)])
@pytest.mark.parametrize("size", [1, 5])
def test_the_values_of_stein_thinning(size: int, c: float, beta: float) -> None:
    draws, gradients = 3 + numbers(80, size, seed=0), numbers(80, size, seed=1)
    sds = draws.std(0)
    matrix = of_stein_thinning(draws / sds, gradients * sds, c, beta)
    found = ksd(draws, gradients, c=c, beta=beta)
    assert found.v_statistic == pytest.approx(matrix.mean(), rel=1e-10)
    assert found.value == float(found) == pytest.approx(math.sqrt(matrix.mean()), rel=1e-10)
    assert found.u_statistic == pytest.approx((matrix.sum() - matrix.trace()) / (80 * 79), rel=1e-10)
    means = (matrix.sum(1) - matrix.diagonal()) / 79
    assert found.standard_error == pytest.approx(2 * means.std(ddof=1) / math.sqrt(80), rel=1e-10)
    assert found.num_draws == 80
    units = numbers(30, size, seed=2) * torch.arange(1.0, size + 1, dtype=torch.float64)
    sds = units.std(0)
    expected = of_stein_thinning(draws / sds, gradients * sds).mean()
    assert ksd(draws.float(), gradients.numpy(), reference=units).v_statistic == pytest.approx(expected, rel=1e-6)


def test_blocks_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = numbers(2000, 50, seed=0)
    before = time.process_time()
    whole = ksd(draws, -draws)
    print(f"2000 draws of 50 values: {time.process_time() - before:.2f} s of CPU")
    assert whole.num_draws > BLOCK
    monkeypatch.setattr("pyro_scale.diagnostics.stein.BLOCK", 300)
    assert ksd(draws, -draws) == pytest.approx(whole, rel=1e-12)
    assert abs(whole.u_statistic) < 4 * whole.standard_error


def damaged(draws: Tensor) -> dict[str, Tensor]:
    """What may be wrong with a sample, from harmless to bad in the order of the discrepancy's limit, computed below."""
    mean, sd = draws.mean(0), draws.std(0)
    return {
        "exact": draws,
        "sd x 0.5": mean + 0.5 * (draws - mean),
        "sd x 2": mean + 2 * (draws - mean),
        "point mass": mean.expand_as(draws),
        "moved by 3 sd": draws + 3 * sd,
        "sd x 5": mean + 5 * (draws - mean),
    }


def published(draws: Tensor, gradients: Tensor, num_data: int) -> float:
    """With kernel gradients of the wrong sign, and scores divided by N."""
    matrix = of_stein_thinning(-draws, gradients / num_data)  # mirrored draws flip the terms of one gradient
    return math.sqrt(max(0.0, matrix.mean()))


def limits() -> dict[str, float]:
    """Squared discrepancies of a standard normal's damaged samples of one dimension, by integration on a grid."""
    step = 0.05
    grid = torch.arange(-30.0, 30.0, step, dtype=torch.float64)
    score = -grid
    difference = grid[:, None] - grid
    q = 1 + difference**2
    kernel = q**-1.5 - 3 * difference**2 * q**-2.5 + difference * (score[:, None] - score) * q**-1.5
    kernel = kernel + score[:, None] * score * q**-0.5
    laws = {"exact": (0, 1), "sd x 0.5": (0, 0.5), "sd x 2": (0, 2), "moved by 3 sd": (3, 1), "sd x 5": (0, 5)}
    found = {"point mass": 1.0}  # the kernel at its own mode
    for name, (mean, sd) in laws.items():
        weights = step * dist.Normal(float(mean), float(sd)).log_prob(grid).exp()
        found[name] = float(weights @ kernel @ weights)
    return found


def test_the_limit_of_many_draws() -> None:
    """U-statistics are within 4 standard errors of the integrals: six at once fail once in 2,500 seeds."""
    draws, expected = numbers(2000, 1, seed=5), limits()
    for name, values in damaged(draws).items():
        found = ksd(values, -values, reference=draws)
        print(f"{name}: {found.u_statistic:.4f} ± {found.standard_error:.4f}, expected {expected[name]:.4f}")
        # what the mean and sd of the draws themselves contribute is of the order of 1 / sqrt(2000)
        assert abs(found.u_statistic - expected[name]) < 4 * found.standard_error + 0.05 * expected[name] + 1e-3


@pytest.fixture(scope="module")
def exact() -> Posterior:
    x = numbers(300, 3, seed=1) * torch.tensor([1.0, 5.0, 0.2], dtype=torch.float64)
    return exact_posterior(x, x.sum(1) + 0.5 * numbers(300, seed=2), num_chains=2, num_samples=300)


def with_draws(posterior: Posterior, w: Tensor) -> Posterior:
    assert posterior.compiled is not None
    return posterior_of(posterior.compiled, {"w": w.reshape(2, -1, w.shape[-1])})


def test_damaged_draws_are_ranked(exact: Posterior) -> None:
    samples = damaged(exact.draws["w"].flatten(0, 1))
    found = {name: ksd(with_draws(exact, draws), reference=exact) for name, draws in samples.items()}
    for name, one in found.items():
        print(f"{name}: KSD {one.value:.3f}, U {one.u_statistic:.4f} ± {one.standard_error:.4f}")
    for statistic in ("value", "u_statistic"):
        values = {name: getattr(one, statistic) for name, one in found.items()}
        assert min(values, key=values.__getitem__) == "exact"
        assert values["sd x 2"] < values["sd x 5"]
        assert values["sd x 0.5"] < values["point mass"] < values["moved by 3 sd"]
    assert abs(found["exact"].u_statistic) < 4 * found["exact"].standard_error


def test_draws_of_chains_are_thinned_until_they_are_independent(exact: Posterior) -> None:
    """Autoregressions of the exact posterior: of all pairs, neighbours included, most would lie beyond 2."""
    x, y = (exact.compiled.data.rows[name] for name in ("x", "y"))  # type: ignore[union-attr]
    mean, covariance = exact_regression(x, y)
    found = []
    for seed in range(20):
        steps = numbers(2, 400, 3, seed=seed)
        for k in range(1, 400):
            steps[:, k] = 0.9 * steps[:, k - 1] + 0.19**0.5 * steps[:, k]
        found.append(ksd(with_draws(exact, mean + steps @ torch.linalg.cholesky(covariance).T), reference=exact))
    z = np.array([one.u_statistic / one.standard_error for one in found])
    print(z.round(1), [one.num_independent for one in found])
    assert (np.abs(z) > 2).sum() <= 2 and abs(z.mean()) < 1
    assert all(one.num_draws == 800 and 8 <= one.num_independent < 60 for one in found)
    walk = ksd(with_draws(exact, exact.draws["w"].cumsum(1)), reference=exact)
    assert walk.num_independent < 8 and math.isnan(walk.standard_error) and walk.value > 0


def test_the_published_formula_does_not_rank_them() -> None:
    """For a posterior of the size of a logistic regression's: 768 rows, 8 coefficients of sd 0.1."""
    samples, sd = damaged(0.1 * numbers(100, 8, seed=0)), 0.1
    found = {name: published(draws, -draws / sd**2, 768) for name, draws in samples.items()}
    print(found)
    assert found["moved by 3 sd"] == pytest.approx(found["exact"], rel=0.01)  # three sds off is as good
    assert found["sd x 5"] < found["sd x 2"] < found["exact"]  # and too wide is better
    valid = {name: ksd(draws, -draws / sd**2, reference=samples["exact"]).value for name, draws in samples.items()}
    assert min(valid, key=valid.__getitem__) == "exact"


def test_own_units_flatter_what_is_too_narrow(exact: Posterior) -> None:
    samples = damaged(exact.draws["w"].flatten(0, 1))
    for name, flattered in (("sd x 0.5", True), ("sd x 5", False)):
        one = with_draws(exact, samples[name])
        assert (ksd(one).u_statistic < ksd(one, reference=exact).u_statistic) == flattered


def test_gradients_are_those_of_the_exact_posterior(exact: Posterior) -> None:
    x, y = (exact.compiled.data.rows[name] for name in ("x", "y"))  # type: ignore[union-attr]
    mean, covariance = exact_regression(x, y)
    thinned = torch.linspace(0, 299, 100).round().long()
    draws = exact.draws["w"][:, thinned].flatten(0, 1)
    expected = ksd(draws, -(draws - mean) @ torch.linalg.inv(covariance))
    assert ksd(exact, num_samples=100)[:2] == pytest.approx(expected[:2], rel=1e-8)


def test_rows_in_blocks_are_all_rows(exact: Posterior, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ksd(exact, num_samples=50)
    monkeypatch.setattr(scores, "ROWS", 77)  # unequal blocks
    assert ksd(exact, num_samples=50) == pytest.approx(whole, rel=1e-9)


def test_constrained_sites_are_looked_at_without_constraints() -> None:
    compiled = compile_model(regression, DATA)
    positions = starts(compiled, 8)
    values = [compiled.constrain({name: leaf[k] for name, leaf in positions.items()}) for k in range(8)]
    posterior = posterior_of(compiled, {name: torch.stack([each[name] for each in values])[None] for name in values[0]})
    flat = torch.cat([positions["w"], positions["sigma"][:, None]], 1)

    def log_density(vector: Tensor) -> Tensor:
        sigma = vector[2].exp()
        prior = -vector[:2].square().sum() / 2 - sigma**2 / 2 + vector[2]
        return prior - len(Y) * vector[2] - ((Y - X @ vector[:2]) / sigma).square().sum() / 2

    gradients = torch.stack([torch.func.grad(log_density)(vector) for vector in flat])
    expected = ksd(flat, gradients)
    assert ksd(posterior)[:2] == pytest.approx(expected[:2], rel=1e-8)
    assert ksd(posterior, reference=posterior)[:2] == pytest.approx(expected[:2], rel=1e-8)
    few = ksd(posterior)
    lag = next(k for k in range(1, 9) if -(-8 // k) == few.num_independent)
    assert few.u_statistic == pytest.approx(ksd(flat[::lag], gradients[::lag], reference=flat).u_statistic, rel=1e-8)


def test_noise_of_minibatches_leaves_both_statistics_unbiased(exact: Posterior) -> None:
    """Over 40 sets of minibatches, in Monte Carlo standard errors; fails once in 1,500 seeds."""
    whole = ksd(exact, num_samples=60, reference=exact)
    found = [ksd(exact, num_samples=60, reference=exact, batch_size=20, seed=seed) for seed in range(40)]
    for statistic in ("v_statistic", "u_statistic"):
        values = np.array([getattr(one, statistic) for one in found])
        z = (values.mean() - getattr(whole, statistic)) / (values.std(ddof=1) / math.sqrt(len(values)))
        print(f"{statistic}: {values.mean():.4f}, all rows {getattr(whole, statistic):.4f}: z {z:.1f}")
        assert abs(z) < 4
    assert found[0] == ksd(exact, num_samples=60, reference=exact, batch_size=20, seed=0)
    assert found[0] != found[1]


def test_what_uncorrected_noise_would_do() -> None:
    """It adds its variance to the pairs of a draw with itself: c^(2 beta) / n of it to the V-statistic."""
    draws = numbers(40, 3, seed=0)
    noise = 2 * numbers(400, 2, 40, 3, seed=1)
    exact = stein_discrepancy(draws, -draws[None])
    one = [stein_discrepancy(draws, (-draws + each[0])[None]).v_statistic - exact.v_statistic for each in noise]
    expected = 3 * 4 / 40
    assert abs(np.mean(one) - expected) < 4 * np.std(one, ddof=1) / math.sqrt(len(one))
    two = [stein_discrepancy(draws, -draws + each).v_statistic - exact.v_statistic for each in noise]
    assert abs(np.mean(two)) < 4 * np.std(two, ddof=1) / math.sqrt(len(two)) < expected / 4


def test_a_single_draw_has_a_v_statistic_alone() -> None:
    units = numbers(20, 2, seed=0)
    found = ksd(torch.zeros(1, 2), torch.zeros(1, 2), reference=units)
    assert found.value == pytest.approx(math.sqrt(2))
    assert math.isnan(found.u_statistic) and math.isnan(found.standard_error)


def test_float32(exact: Posterior) -> None:
    assert exact.compiled is not None
    data = {name: value.float() for name, value in exact.compiled.data.rows.items()}
    single = posterior_of(compile_model(known_noise, data), {"w": exact.draws["w"].float()})
    assert ksd(single, num_samples=100) == pytest.approx(ksd(exact, num_samples=100), rel=1e-2, abs=1e-3)


def joint(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[-1]]).to_event(1))
    pyro.sample("obs", dist.MultivariateNormal(x @ w, torch.eye(len(x))), obs=y)


def per_row(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(w, 1.0))
        pyro.sample("obs", dist.Normal(z, 1.0), obs=y)


def of_model(model: Any, num_samples: int = 6) -> Posterior:
    compiled: CompiledModel = compile_model(model, DATA)
    draws = {name: numbers(2, num_samples, *shape, seed=3) for name, shape in compiled.latent.items()}
    return posterior_of(compiled, draws)


def test_models_of_all_rows_and_of_values_a_row() -> None:
    for model in (joint, per_row):
        assert math.isfinite(ksd(of_model(model)).value)
        with pytest.raises(MinibatchError, match="Leave batch_size out"):
            ksd(of_model(model), batch_size=5)


ONES = torch.ones(5, 2)
VARIED = numbers(5, 2, seed=0)
BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no scores": (VARIED, {}, "draws are a Tensor without scores; pass their gradients, or a posterior"),
    "a vector": (VARIED[:, 0], {"scores": VARIED[:, 0]}, r"draws have shape \(5,\); they must be unconstrained"),
    "no draws": (VARIED[:0], {"scores": VARIED[:0]}, r"draws have shape \(0, 2\)"),
    "shapes": (VARIED, {"scores": VARIED[:4]}, r"scores have shape \(4, 2\) and draws \(5, 2\)"),
    "constant": (ONES, {"scores": ONES}, "draws of coordinate 0 do not vary.*Pass a reference whose draws do"),
    "one": (VARIED[:1], {"scores": VARIED[:1]}, "Pass a reference"),
    "constant reference": (VARIED, {"scores": ONES, "reference": ONES}, "reference's draws of coordinate 0 do not"),
    "reference": (VARIED, {"scores": ONES, "reference": ONES[:, :1]}, r"reference have shape \(5, 1\)"),
    "nan": (VARIED * torch.tensor([1.0, torch.nan]), {"scores": ONES}, "value of coordinate 1 is nan at draw 0"),
    "scores": (VARIED, {"scores": ONES / 0}, "gradient of coordinate 0 is inf at draw 0"),
    "thinning": (VARIED, {"scores": ONES, "num_samples": 3}, "are of posteriors"),
    "c": (VARIED, {"scores": ONES, "c": 0.0}, "c is 0.0 and beta -0.5; c must be positive"),
    "beta": (VARIED, {"scores": ONES, "beta": -1.0}, "beta between -1 and 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_has_no_discrepancy(name: str) -> None:
    draws, named, message = BAD[name]
    with pytest.raises(ArgumentError, match=message):
        ksd(draws, **named)


def test_posteriors_without_a_discrepancy(exact: Posterior) -> None:
    w = exact.draws["w"]
    broken = w.clone()
    broken[0, 7, 1] = torch.inf
    other = posterior_of(compile_model(known_noise, DATA), {"v": w})
    without_model = with_draws(exact, w)
    without_model.compiled = None
    cases: list[tuple[Posterior, dict[str, Any], type[PyroScaleError], str]] = [
        (without_model, {}, MissingModelError, "ksd runs the model"),
        (other, {}, MissingModelError, "ksd needs draws of every latent site, and 'w' was not kept"),
        (exact, {"reference": other}, ArgumentError, "reference has no draws of 'w'"),
        (exact, {"reference": w}, ArgumentError, "reference is a Tensor; with a posterior it must be one"),
        (exact, {"scores": w}, ArgumentError, "scores of a posterior follow from its model"),
        (exact, {"batch_size": 301}, ArgumentError, "batch_size is 301; it must be a whole number from 1 to 300"),
        (exact, {"num_samples": 301}, ArgumentError, "num_samples is 301"),
        (exact, {"seed": -1}, ArgumentError, "seed is -1"),
        (with_draws(exact, broken), {}, ArgumentError, r"value of coordinate w\[1\] is inf at draw 7"),
    ]
    for posterior, named, kind, message in cases:
        with pytest.raises(kind, match=message):
            ksd(posterior, **named)
    still = with_draws(exact, w[:1, :1].expand(2, 5, 3))
    with pytest.raises(ArgumentError, match=r"draws of coordinate w\[0\] do not vary"):
        ksd(still)
    assert ksd(still, reference=exact).value > 0
