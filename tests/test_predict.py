"""Predictions and log-likelihoods against exact answers, sums by hand, and Pyro's own traces."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from model_cases import CASES, CLASS, CLASSES, DIM, GROUP, GROUPS, LABELS, Case, N, X, Y, groups, normal
from posterior_cases import (
    NOISE,
    exact_posterior,
    exact_regression,
    generator,
    posterior_of,
    regression,
    spread_posterior,
)
from pyro import poutine
from pyro_scale.models import eight_schools
from torch import Tensor

from pyro_scale import predict as predict_module
from pyro_scale.compile import compile_model
from pyro_scale.errors import ArgumentError, DataError, MinibatchError, ModelError
from pyro_scale.posterior import Posterior

X_NEW = torch.tensor([[0.0, 0.0, 0.0], [1.0, -1.0, 0.5], [3.0, 2.0, -4.0]], dtype=torch.float64)
Y_NEW = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)


def classifier(x: Tensor, y: Tensor | None = None) -> None:
    w = pyro.sample("w", normal(x.shape[-1]))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Bernoulli(logits=x @ w), obs=y)


def classes(x: Tensor, y: Tensor | None = None) -> None:
    w = pyro.sample("w", normal(x.shape[-1], CLASSES))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Categorical(logits=x @ w), obs=y)


def two_outputs(x: Tensor, y: Tensor | None = None, count: Tensor | None = None) -> None:
    w = pyro.sample("w", normal(x.shape[-1]))
    with pyro.plate("data", len(x)):
        mean = pyro.deterministic("mean", x @ w)
        pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)
        pyro.sample("events", dist.Poisson(mean.exp()), obs=count)


def without_default(x: Tensor, y: Tensor | None) -> None:
    regression(x, y)


def per_row(x: Tensor, y: Tensor | None = None) -> None:
    """Nothing but values of rows."""
    with pyro.plate("data", len(x)):
        level = pyro.sample("level", dist.Normal(x[:, 0], 2.0))
        pyro.sample("obs", dist.Normal(level, 1.0), obs=y)


def unknown_moments(x: Tensor, y: Tensor | None = None) -> None:
    w = pyro.sample("w", normal(x.shape[-1]))
    exponential = torch.distributions.transforms.ExpTransform()
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.TransformedDistribution(dist.Normal(x @ w, 1.0), [exponential]), obs=y)


def by_hand(model: Any, data: dict[str, Tensor], draws: dict[str, Tensor]) -> Posterior:
    return posterior_of(compile_model(model, data), draws)


@pytest.fixture(scope="module")
def exact() -> Posterior:
    return exact_posterior(X, Y)


def test_a_normal_model_against_its_exact_predictive_distribution(exact: Posterior) -> None:
    """20,000 independent draws. A band of 5 standard errors fails with probability 6e-7 for each of 12 numbers."""
    mean, covariance = exact_regression(X, Y)
    epistemic = torch.einsum("ni,ij,nj->n", X_NEW, covariance, X_NEW)
    size = 20_000
    found = exact.predict({"x": X_NEW, "y": Y_NEW})
    error = (found.mean["obs"] - X_NEW @ mean).abs()
    assert (error <= 5 * (epistemic / size).sqrt() + 1e-12).all()
    assert torch.allclose(found.aleatoric["obs"], torch.full((3,), NOISE**2).double(), rtol=1e-12)
    relative = (found.epistemic["obs"][1:] / epistemic[1:] - 1).abs()
    print("mean off by", error.tolist(), "epistemic variance by", relative.tolist())
    assert (relative < 5 * math.sqrt(2 / size)).all()
    assert found.epistemic["obs"][0] == 0
    assert torch.equal(found.total["obs"], found.aleatoric["obs"] + found.epistemic["obs"])
    assert torch.equal(found.sd["obs"], found.total["obs"].sqrt())
    # of the likelihood at a draw: E L^2 = N(y; m, s^2 / 2 + e) / (2 s sqrt(pi)), with noise s and epistemic variance e
    exact_density = dist.Normal(X_NEW @ mean, (NOISE**2 + epistemic).sqrt()).log_prob(Y_NEW)
    square = dist.Normal(X_NEW @ mean, (NOISE**2 / 2 + epistemic).sqrt()).log_prob(Y_NEW).exp() / (
        2 * NOISE * math.sqrt(math.pi)
    )
    relative_sd = (square / exact_density.exp() ** 2 - 1).clamp(min=0).sqrt()
    error = (found.log_predictive_density["obs"] - exact_density).abs()
    assert (error <= 5 * relative_sd / math.sqrt(size) + 1e-9).all()


def test_draws_have_the_predictive_distribution(exact: Posterior) -> None:
    """One draw a posterior draw: mean and sd of 20,000 within 5 standard errors; and they follow their own draw."""
    found = exact.predict({"x": X_NEW})
    draws = found.draws["obs"]
    assert draws.shape == (4, 5000, 3)
    assert draws.dtype == torch.float64
    flat = draws.flatten(0, 1)
    assert ((flat.mean(0) - found.mean["obs"]).abs() < 5 * found.sd["obs"] / math.sqrt(len(flat))).all()
    assert ((flat.std(0) / found.sd["obs"] - 1).abs() < 5 / math.sqrt(2 * len(flat))).all()
    noise = flat - exact.draws["w"].flatten(0, 1) @ X_NEW.T
    assert ((noise.std(0) / NOISE - 1).abs() < 5 / math.sqrt(2 * len(flat))).all()
    correlation = torch.corrcoef(noise.T)[~torch.eye(3, dtype=torch.bool)]
    assert (correlation.abs() < 5 / math.sqrt(len(flat))).all()  # rows, and draws, have noise of their own
    assert torch.corrcoef(torch.stack([noise[1:, 1], noise[:-1, 1]]))[0, 1].abs() < 5 / math.sqrt(len(flat))


def entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(p)).sum(-1)


def test_bernoulli_by_hand() -> None:
    weights = torch.tensor([[[1.0, 0.0, -1.0], [-2.0, 0.5, 0.0]]], dtype=torch.float64)
    found = by_hand(classifier, {"x": X, "y": LABELS}, {"w": weights}).predict(
        {"x": X_NEW, "y": torch.tensor([0, 1, 1])}
    )
    one = 1 / (1 + np.exp(-(weights[0] @ X_NEW.T).numpy()))  # (draws, rows)
    p = one.mean(0)
    assert found.mean["obs"].numpy() == pytest.approx(p)
    assert found.sd["obs"].numpy() == pytest.approx(np.sqrt(p * (1 - p)))
    assert found.total["obs"].numpy() == pytest.approx(entropy(np.stack([p, 1 - p], -1)))
    assert found.aleatoric["obs"].numpy() == pytest.approx(entropy(np.stack([one, 1 - one], -1)).mean(0))
    assert torch.allclose(found.total["obs"], found.aleatoric["obs"] + found.epistemic["obs"])
    assert found.epistemic["obs"][0] == pytest.approx(0, abs=1e-12)
    assert (found.epistemic["obs"][1:] > 0.01).all()
    expected = np.log([1 - p[0], p[1], p[2]])
    assert found.log_predictive_density["obs"].numpy() == pytest.approx(expected)
    assert set(found.draws["obs"].unique().tolist()) <= {0.0, 1.0}


def test_saturated_probabilities_leave_no_nan() -> None:
    for dtype in (torch.float64, torch.float32):
        draws = {"w": torch.full((1, 2, DIM), 1e4, dtype=dtype)}
        data = {"x": X.to(dtype), "y": LABELS}
        found = by_hand(classifier, data, draws).predict({"x": X_NEW.to(dtype)})
        for values in (found.mean, found.sd, found.total, found.aleatoric, found.epistemic):
            assert torch.isfinite(values["obs"]).all()
        assert (found.epistemic["obs"] >= 0).all()


def test_categorical_by_hand() -> None:
    weights = torch.randn(2, 3, DIM, CLASSES, generator=generator(0), dtype=torch.float64)
    found = by_hand(classes, {"x": X, "y": CLASS}, {"w": weights}).predict({"x": X_NEW, "y": torch.tensor([0, 1, 2])})
    each = (X_NEW @ weights.flatten(0, 1)).softmax(-1).numpy()  # (draws, rows, classes)
    p = each.mean(0)
    assert found.mean["obs"].numpy() == pytest.approx(p)
    assert "obs" not in found.sd
    assert found.total["obs"].numpy() == pytest.approx(entropy(p))
    assert found.aleatoric["obs"].numpy() == pytest.approx(entropy(each).mean(0))
    assert torch.allclose(found.total["obs"], found.aleatoric["obs"] + found.epistemic["obs"])
    assert (found.epistemic["obs"] >= 0).all()
    assert found.log_predictive_density["obs"].numpy() == pytest.approx(np.log(p[[0, 1, 2], [0, 1, 2]]))
    assert found.draws["obs"].shape == (2, 3, 3)


def test_several_observed_sites_by_hand() -> None:
    weights = torch.tensor([[[0.1, 0.2, 0.3]], [[-0.2, 0.0, 0.4]]], dtype=torch.float64)
    fitted = by_hand(two_outputs, {"x": X, "y": Y, "count": LABELS}, {"w": weights, "mean": weights[..., :1] * X[:, 0]})
    found = fitted.predict({"x": X_NEW})
    means = weights[:, 0] @ X_NEW.T
    assert torch.allclose(found.mean["obs"], means.mean(0))
    assert torch.allclose(found.aleatoric["obs"], torch.ones(3).double())
    assert torch.allclose(found.epistemic["obs"], means.var(0, correction=0))
    assert torch.allclose(found.mean["events"], means.exp().mean(0))
    assert torch.allclose(found.aleatoric["events"], means.exp().mean(0))
    assert torch.allclose(found.epistemic["events"], means.exp().var(0, correction=0))
    assert set(found.draws) == {"obs", "events"}
    assert found.log_predictive_density == {}
    assert fitted.predict({"x": X_NEW, "y": Y_NEW}).log_predictive_density == {}  # no counts
    both = fitted.predict({"x": X_NEW, "y": Y_NEW, "count": torch.tensor([1, 0, 2])})
    assert set(both.log_predictive_density) == {"obs", "events"}
    rate = torch.tensor([1, 0, 2]) * means - means.exp() - torch.tensor([1.0, 1.0, 2.0]).log()
    assert torch.allclose(both.log_predictive_density["events"], rate.exp().mean(0).log())


def test_new_rows_with_and_without_observations(exact: Posterior) -> None:
    with_y = exact.predict({"x": X_NEW, "y": Y_NEW})
    without = exact.predict({"x": X_NEW})
    given_none = exact.predict({"x": X_NEW, "y": None})
    for name in ("draws", "mean", "sd", "total", "aleatoric", "epistemic"):
        for other in (without, given_none):
            assert torch.equal(getattr(with_y, name)["obs"], getattr(other, name)["obs"])
    assert without.log_predictive_density == {}
    assert with_y.log_predictive_density["obs"].shape == (3,)


def test_data_in_every_form(exact: Posterior) -> None:
    expected = exact.predict({"x": X_NEW}).mean["obs"]
    for data in (X_NEW, (X_NEW,), X_NEW.numpy(), {"x": X_NEW.float()}):
        assert torch.allclose(exact.predict(data).mean["obs"], expected)
    whole = torch.tensor([[1, 0, 2], [0, -1, 1]])  # of integers, where the fit had real numbers
    assert torch.equal(exact.predict({"x": whole}).mean["obs"], exact.predict({"x": whole.double()}).mean["obs"])


def test_an_argument_without_default_may_be_left_out() -> None:
    fitted = spread_posterior(without_default, {"x": X, "y": Y})
    found = fitted.predict({"x": X_NEW})
    assert torch.allclose(found.mean["obs"], (fitted.draws["w"] @ X_NEW.T).flatten(0, 1).mean(0))


def test_the_rows_of_the_fit(exact: Posterior) -> None:
    fitted = exact.predict()
    again = exact.predict({"x": X, "y": Y})
    assert torch.equal(fitted.mean["obs"], again.mean["obs"])
    assert torch.equal(fitted.log_predictive_density["obs"], again.log_predictive_density["obs"])


def test_groups_in_new_rows() -> None:
    fitted = spread_posterior(groups, {"g": GROUP, "y": Y}, constants={"num_groups": GROUPS})
    rows = {"g": torch.tensor([3, 0]), "y": torch.zeros(2, dtype=torch.float64)}
    assert torch.allclose(fitted.predict(rows).mean["obs"], fitted.draws["effect"].mean((0, 1))[[3, 0]])


def test_local_sites_use_their_draws_for_the_fit_and_the_prior_for_new_rows() -> None:
    """Two schools with mu 3, tau 2: the mean of 4000 effects drawn anew is within 5 standard errors, 2e-6 to fail."""
    problem = eight_schools()
    shape = (4, 1000)
    draws = {
        "mu": torch.full(shape, 3.0, dtype=torch.float64),
        "tau": torch.full(shape, 2.0, dtype=torch.float64),
        "theta_trans": torch.full((*shape, 8), 5.0, dtype=torch.float64),
    }
    fitted = by_hand(problem.model, dict(problem.data), draws)
    sigma = torch.tensor([1.0, 7.0], dtype=torch.float64)
    trained, new = fitted.predict(), fitted.predict({"sigma": sigma})
    assert torch.allclose(trained.mean["obs"], torch.full((8,), 13.0).double())
    assert torch.allclose(trained.epistemic["obs"], torch.zeros(8).double())
    assert torch.allclose(trained.aleatoric["obs"], problem.data["sigma"] ** 2)
    assert trained.log_predictive_density["obs"].shape == (8,)
    assert (new.mean["obs"] - 3).abs().max() < 5 * 2 / math.sqrt(4000)
    assert ((new.total["obs"] - sigma**2) / 4 - 1).abs().max() < 5 * math.sqrt(2 / 4000)
    assert torch.equal(new.sd["obs"] ** 2, new.sd["obs"] * new.total["obs"].sqrt())
    assert new.aleatoric == new.epistemic == {}  # the spread of new effects is of neither kind
    assert fitted.predict({"sigma": sigma, "y": sigma}).log_predictive_density == {}
    with pytest.raises(MinibatchError, match="Site 'theta_trans' has a value for each row the model was fitted to"):
        fitted.log_likelihood({"sigma": sigma, "y": sigma})


def test_a_model_of_nothing_but_local_sites() -> None:
    fitted = spread_posterior(per_row, {"x": X, "y": Y}, num_samples=500)
    found = fitted.predict({"x": X_NEW})
    assert found.draws["obs"].shape == (2, 500, 3)
    assert ((found.mean["obs"] - X_NEW[:, 0]).abs() < 5 * 2 / math.sqrt(1000)).all()


def test_without_known_moments_there_are_draws_and_densities() -> None:
    fitted = spread_posterior(unknown_moments, {"x": X, "y": Y.exp()})
    found = fitted.predict({"x": X_NEW, "y": Y_NEW.exp()})
    assert (found.draws["obs"] > 0).all()
    assert found.mean == {} and found.total == {} and found.sd == {}
    expected = dist.Normal(fitted.draws["w"] @ X_NEW.T, 1.0).log_prob(Y_NEW) - Y_NEW
    lpd = expected.flatten(0, 1).exp().mean(0).log()
    assert torch.allclose(found.log_predictive_density["obs"], lpd)


def test_float32_keeps_a_small_spread_of_a_large_mean() -> None:
    x = 1000 + X[:, :1]
    _, covariance = exact_regression(x, x[:, 0])
    draws = exact_posterior(x, x[:, 0]).draws["w"].float()
    fitted = by_hand(regression, {"x": x.float(), "y": x[:, 0].float()}, {"w": draws})
    found = fitted.predict({"x": x[:3]})
    epistemic = (x[:3, 0] ** 2 * covariance[0, 0]).float()
    assert found.epistemic["obs"].dtype == torch.float32
    assert torch.allclose(found.epistemic["obs"], epistemic, rtol=0.05)
    assert torch.allclose(found.mean["obs"], x[:3, 0].float(), rtol=1e-3)


def test_seeds(exact: Posterior) -> None:
    before = torch.get_rng_state()
    one, again, other = (exact.predict({"x": X_NEW}, num_samples=10, seed=seed).draws["obs"] for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    assert torch.equal(exact.predict({"x": X_NEW}, num_samples=10, seed=1).draws["obs"], one)
    torch.set_rng_state(before)


def test_num_samples_takes_draws_evenly_from_every_chain() -> None:
    count = torch.arange(2 * 11, dtype=torch.float64).reshape(2, 11, 1)
    fitted = by_hand(regression, {"x": X[:, :1], "y": Y}, {"w": count})
    found = fitted.predict({"x": torch.ones(1, 1).double()}, num_samples=3)
    assert found.draws["obs"].shape == (2, 3, 1)
    assert found.mean["obs"].item() == pytest.approx(np.mean([0, 5, 10, 11, 16, 21]))
    assert fitted.predict({"x": torch.ones(1, 1)}, num_samples=11).draws["obs"].shape == (2, 11, 1)


@pytest.mark.parametrize("number", [0, -1, 12, 2.0, True, "all"])
def test_num_samples_out_of_range(number: Any) -> None:
    fitted = by_hand(regression, {"x": X, "y": Y}, {"w": torch.zeros(2, 11, DIM).double()})
    with pytest.raises(ArgumentError, match=f"num_samples is {number!r}; it must be a whole number from 1 to 11, the"):
        fitted.predict({"x": X_NEW}, num_samples=number)


def test_a_group_that_the_fit_did_not_have() -> None:
    fitted = spread_posterior(groups, {"g": GROUP, "y": Y}, constants={"num_groups": GROUPS})
    with pytest.raises(ModelError, match=r"IndexError: .* An index column of these rows may name a group that the fit"):
        fitted.predict({"g": torch.tensor([0, GROUPS]), "y": Y[:2]})


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "too few columns": (
        {"x": X[:, :2]},
        DataError,
        r"data\['x'\] has rows of shape \(2,\); those of the fit have.*\(3,\)",
    ),
    "no columns": ({"x": X[:, 0]}, DataError, r"rows of shape \(\); those of the fit"),
    "missing argument": ({"y": Y}, ArgumentError, "argument 'x' is missing"),
    "unknown argument": ({"x": X, "z": Y}, ArgumentError, "'z' is no argument of the model"),
    "NaN": ({"x": X * torch.nan}, DataError, r"data\['x'\] holds NaN in row 0"),
    "infinity": ({"x": X, "y": Y / 0}, DataError, r"data\['y'\] holds infinity"),
    "unequal lengths": ({"x": X, "y": Y[:5]}, DataError, r"data\['y'\] has 5 rows and data\['x'\] has 24"),
    "nothing": ({}, DataError, "data is empty"),
    "text": ({"x": np.array([["a"] * 3])}, DataError, "dtype <U1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_rows(name: str, exact: Posterior) -> None:
    data, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        exact.predict(data)


def test_real_numbers_where_the_fit_had_whole_ones() -> None:
    fitted = spread_posterior(groups, {"g": GROUP, "y": Y}, constants={"num_groups": GROUPS})
    with pytest.raises(DataError, match=r"data\['g'\] is torch.float64 and was torch.int64 in the fit"):
        fitted.predict({"g": GROUP.double(), "y": Y})


def test_a_model_that_computes_with_its_observations() -> None:
    fitted = spread_posterior(groups, {"g": GROUP, "y": Y}, constants={"num_groups": GROUPS})
    with pytest.raises(ModelError, match=r"does not run on these 24 rows without 'y'.*or pass 'y' along"):
        fitted.predict({"g": GROUP})


def test_a_model_that_only_samples_what_it_observes() -> None:
    def model(x: Tensor, y: Tensor | None = None) -> None:
        w = pyro.sample("w", normal(DIM))
        with pyro.plate("data", len(x)):
            if y is not None:
                pyro.sample("obs", dist.Normal(x @ w, 1.0), obs=y)

    fitted = spread_posterior(model, {"x": X, "y": Y})
    with pytest.raises(ModelError, match="no site 'obs' without observations"):
        fitted.predict({"x": X_NEW})
    assert fitted.predict({"x": X_NEW, "y": Y_NEW}).mean["obs"].shape == (3,)


def test_one_distribution_for_all_rows_cannot_be_predicted_by_row() -> None:
    def model(x: Tensor, y: Tensor | None = None) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)

    fitted = spread_posterior(model, {"x": X, "y": Y})
    with pytest.raises(ModelError, match=r"Site 'obs' is drawn once for all rows.*Put it in the plate"):
        fitted.predict({"x": X_NEW})


def test_models_that_cannot_be_vectorised_are_predicted_draw_by_draw() -> None:
    case = next(case for case in CASES if case.name == "ordered logistic")
    fitted = spread_posterior(case.model, case.data)
    found = fitted.predict()
    assert found.mean["obs"].shape == (N, CLASSES)
    assert torch.allclose(found.mean["obs"].sum(-1), torch.ones(N).double())


def test_memory_is_bounded_by_rows_times_draws(exact: Posterior, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = exact.predict({"x": X_NEW, "y": Y_NEW}, num_samples=50)
    sizes = []
    original = predict_module.over_draws

    def watched(function: Any, draws: dict[str, Tensor], **options: Any) -> Any:
        sizes.append(len(draws["w"]))
        return original(function, draws, **options)

    monkeypatch.setattr(predict_module, "over_draws", watched)
    monkeypatch.setattr(predict_module, "BLOCK_NUMBERS", 3 * 7)
    found = exact.predict({"x": X_NEW, "y": Y_NEW}, num_samples=50)
    assert max(sizes) == 7
    for name in ("mean", "sd", "epistemic", "aleatoric", "log_predictive_density"):
        assert torch.allclose(getattr(found, name)["obs"], getattr(expected, name)["obs"], rtol=1e-10)
    monkeypatch.setattr(predict_module, "BLOCK_NUMBERS", 1)
    assert exact.predict({"x": X_NEW}, num_samples=2).draws["obs"].shape == (4, 2, 3)
    assert sizes[-1] == 1


def test_rows_go_in_blocks_too(exact: Posterior, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows at a time, and one at the end; averages are those of all together, draws have the same law."""
    expected = exact.predict({"x": X_NEW, "y": Y_NEW})
    monkeypatch.setattr(predict_module, "BLOCK_ROWS", 2)
    found = exact.predict({"x": X_NEW, "y": Y_NEW})
    for name in ("mean", "sd", "epistemic", "aleatoric", "total", "log_predictive_density"):
        assert torch.allclose(getattr(found, name)["obs"], getattr(expected, name)["obs"], rtol=1e-10)
    assert found.draws["obs"].shape == expected.draws["obs"].shape
    noise = found.draws["obs"].flatten(0, 1) - exact.draws["w"].flatten(0, 1) @ X_NEW.T
    assert ((noise.std(0) / NOISE - 1).abs() < 5 / math.sqrt(2 * len(noise))).all()  # each row has its own draw's


def test_blocks_of_rows_along_the_second_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    def model(x: Tensor, y: Tensor | None = None) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([DIM, 2]).to_event(2))
        with pyro.plate("kinds", 2, dim=-2), pyro.plate("data", len(x), dim=-1):
            pyro.sample("obs", dist.Normal((x @ w).T, 0.5), obs=None if y is None else y.T)

    fitted = spread_posterior(model, {"x": X, "y": X[:, :2]})
    expected = fitted.predict({"x": X, "y": X[:, :2]})
    monkeypatch.setattr(predict_module, "BLOCK_ROWS", 7)
    found = fitted.predict({"x": X, "y": X[:, :2]})
    assert found.mean["obs"].shape == (2, N)
    assert found.draws["obs"].shape == (2, 3, 2, N)
    for name in ("mean", "sd", "epistemic", "log_predictive_density"):
        assert torch.allclose(getattr(found, name)["obs"], getattr(expected, name)["obs"], rtol=1e-10)


def traced_log_likelihood(
    model: Any, data: dict[str, Any], draw: dict[str, Tensor], sites: list[str]
) -> dict[str, Any]:
    """By Pyro itself, summed over rows: validation and the library's own handlers play no part."""
    trace = poutine.trace(poutine.condition(model, data=draw)).get_trace(**data)
    trace.compute_log_prob()
    return {name: float(trace.nodes[name]["log_prob_sum"]) for name in sites}


DIRECT = ["linear", "Categorical", "several observed sites", "weights", "eight schools", "multivariate rows", "groups"]


@pytest.mark.parametrize("case", [case for case in CASES if case.name in DIRECT], ids=lambda case: case.name)
def test_log_likelihood_is_that_of_pyros_trace(case: Case) -> None:
    fitted = spread_posterior(case.model, case.data, constants=case.constants)
    found = fitted.log_likelihood()
    data = {
        name: value.double() if name in case.arguments.values() else value for name, value in case.data.items()
    } | case.constants
    for chain in range(2):
        for draw in range(3):
            at = {name: fitted.draws[name][chain, draw] for name in fitted.draws}
            latent = {name: value for name, value in at.items() if fitted.compiled.sites[name].kind == "latent"}
            before = torch.get_default_dtype()
            torch.set_default_dtype(torch.float64)
            try:
                expected = traced_log_likelihood(case.model, data, latent, list(found))
            finally:
                torch.set_default_dtype(before)
            for name, value in found.items():
                assert value.shape == (2, 3, N)
                assert float(value[chain, draw].sum()) == pytest.approx(expected[name], rel=1e-10)


def test_log_likelihood_of_rows_and_of_new_rows(exact: Posterior) -> None:
    expected = dist.Normal(exact.draws["w"] @ X_NEW.T, NOISE).log_prob(Y_NEW)
    assert torch.allclose(exact.log_likelihood({"x": X_NEW, "y": Y_NEW})["obs"], expected)
    expected = dist.Normal(exact.draws["w"] @ X.T, NOISE).log_prob(Y)
    assert torch.allclose(exact.log_likelihood()["obs"], expected)


def test_log_likelihood_needs_observations_and_draws_none(exact: Posterior) -> None:
    for data in ({"x": X_NEW}, {"x": X_NEW, "y": None}):
        with pytest.raises(ArgumentError, match="log-likelihood of site 'obs' needs observations: pass 'y' in data"):
            exact.log_likelihood(data)


def test_observations_outside_their_support() -> None:
    fitted = spread_posterior(classifier, {"x": X, "y": LABELS})
    bad = {"x": X_NEW, "y": torch.tensor([0, 1, 2])}
    with pytest.raises(DataError, match="Site 'obs' observes 2"):
        fitted.log_likelihood(bad)
    with pytest.raises(DataError, match="Site 'obs' observes 2"):
        fitted.predict(bad)
    several = spread_posterior(classes, {"x": X, "y": CLASS})
    with pytest.raises(DataError, match="Site 'obs' observes 9"):
        several.log_likelihood({"x": X_NEW, "y": torch.tensor([0, 9, 2])})


def test_log_likelihood_without_a_likelihood() -> None:
    def model(x: Tensor) -> None:
        w = pyro.sample("w", normal(DIM))
        pyro.factor("all rows", -(x @ w).square().sum())

    fitted = spread_posterior(model, {"x": X})
    with pytest.raises(ModelError, match="No observed site of the model has a log-likelihood"):
        fitted.log_likelihood()
