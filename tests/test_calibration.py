"""Scores and calibration of predictions: against scikit-learn, numerical integration, and laws that are known."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import sklearn.calibration
import sklearn.metrics
import torch
from posterior_cases import exact_posterior, posterior_of
from pyro_scale.diagnostics import (
    auroc,
    brier_score,
    calibration,
    crps,
    expected_calibration_error,
    interval_coverage,
    ood_auroc,
    pit,
    reliability,
)
from small_models import DATA, numbers, regression
from torch import Tensor

from pyro_scale.compile import compile_model
from pyro_scale.errors import ArgumentError, DataError, MissingModelError, PyroScaleError
from pyro_scale.posterior import Posterior
from pyro_scale.prediction import Prediction


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uniforms(*shape: int, seed: int) -> Tensor:
    return torch.rand(*shape, generator=generator(seed), dtype=torch.float64)


P = uniforms(500, seed=0)
HAPPENED = (uniforms(500, seed=1) < P).double()
CLASSES = numbers(500, 4, seed=2).mul(2).softmax(-1)
LABELS = torch.multinomial(CLASSES, 1, generator=generator(3))[:, 0]


def test_brier_scores_of_scikit_learn() -> None:
    found = brier_score(P, HAPPENED)
    assert float(found.mean()) == pytest.approx(sklearn.metrics.brier_score_loss(HAPPENED, P), rel=1e-12)
    several = sklearn.metrics.brier_score_loss(LABELS, CLASSES, labels=range(4), scale_by_half=False)
    assert float(brier_score(CLASSES, LABELS).mean()) == pytest.approx(several, rel=1e-12)
    two = torch.stack([1 - P, P], -1)
    assert torch.allclose(brier_score(two, HAPPENED), 2 * found)
    assert brier_score(CLASSES.float().reshape(5, 100, 4), LABELS.reshape(5, 100)).shape == (5, 100)


def test_reliability_of_scikit_learn() -> None:
    for values, bins in ((P, 15), (P, 4), ((P * 10).round() / 10, 10)):  # the last lie on the ends of bins
        frequency, confidence = sklearn.calibration.calibration_curve(HAPPENED, values, n_bins=bins)
        table = reliability(values, HAPPENED, bins)
        full = table[table["count"] > 0]
        assert np.allclose(full["frequency"], frequency, rtol=1e-12)
        assert np.allclose(full["confidence"], confidence, rtol=1e-12)
        assert table["count"].sum() == 500 and len(table) == bins
        expected = (full["count"] / 500 * np.abs(frequency - confidence)).sum()
        assert expected_calibration_error(values, HAPPENED, bins) == pytest.approx(expected, rel=1e-12)
    empty = reliability([0.1, 0.1], [0, 1], 3)
    assert empty["count"].tolist() == [2, 0, 0]
    assert empty["frequency"].isna().tolist() == [False, True, True]
    assert empty["standard_error"][0] == pytest.approx(math.sqrt(0.1 * 0.9 / 2)) and math.isnan(
        empty["standard_error"][1]
    )
    never = reliability([0.2] * 25, [0] * 25, 1)  # is 2.5 standard errors off
    assert never["standard_error"][0] == pytest.approx(0.08)
    assert expected_calibration_error([0.1, 0.1, 0.9], [0, 1, 1], 2) == pytest.approx((2 * 0.4 + 0.1) / 3)


def test_crps_is_its_integral() -> None:
    """Of the draws' distribution function, less the variance that so few draws give it."""
    draws, observed = numbers(9, 3, 2, seed=4), numbers(3, 2, seed=5) * 2
    found = crps(draws, observed)
    assert found.shape == (3, 2)
    for row in np.ndindex(3, 2):
        x, y = draws[(slice(None), *row)].numpy(), float(observed[row])
        knots = np.sort(np.append(x, y))  # between them the integrand is constant
        middles = (knots[1:] + knots[:-1]) / 2
        below = (x[:, None] <= middles).mean(0)
        squares = (below - (middles >= y)) ** 2 - below * (1 - below) / (9 - 1)
        assert float(found[row]) == pytest.approx(float(squares @ np.diff(knots)), rel=1e-12)
    assert torch.equal(crps(draws[:1], observed), (draws[0] - observed).abs())


def test_crps_of_a_normal() -> None:
    """The closed form of Gneiting et al. (2005), at the quantiles of a normal."""
    draws = torch.special.ndtri((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000)
    for y in (-1.3, 0.0, 2.5):
        law = scipy.stats.norm
        expected = y * (2 * law.cdf(y) - 1) + 2 * law.pdf(y) - 1 / math.sqrt(math.pi)
        assert float(crps(draws[:, None], [y])) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("number", [2, 5, 50])
def test_crps_does_not_depend_on_the_number_of_draws(number: int) -> None:
    """Of an exact prediction of standard normals it is 1 / sqrt(pi); three within 4 sds fail once in 5,000 seeds."""
    draws = numbers(number + 1, 20_000, seed=13)
    found = crps(draws[1:], draws[0])
    z = (float(found.mean()) - 1 / math.sqrt(math.pi)) / (float(found.std()) / math.sqrt(20_000))
    print(f"{number} draws: {float(found.mean()):.4f}, z {z:.1f}")
    assert abs(z) < 4


def test_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    draws, observed = numbers(20, 31, seed=6), numbers(31, seed=7)
    whole, inside, places = crps(draws, observed), interval_coverage(draws, observed), pit(draws, observed, generator())
    monkeypatch.setattr("pyro_scale.diagnostics.proper_scores.BLOCK_NUMBERS", 100)
    assert torch.allclose(crps(draws, observed), whole, rtol=1e-14)
    assert torch.equal(interval_coverage(draws, observed), inside)
    assert torch.equal(pit(draws, observed, generator()), places)


def test_intervals_are_those_of_numpy() -> None:
    draws, observed = numbers(50, 400, seed=8), 1.5 * numbers(400, seed=9)
    levels = (0.5, 0.93, 0.99)  # the last ends at the outermost draws
    found = interval_coverage(draws, observed, levels)
    for level, inside in zip(levels, found, strict=True):
        low, high = np.quantile(draws.numpy(), [(1 - level) / 2, (1 + level) / 2], axis=0, method="weibull")
        expected = (low <= observed.numpy()) & (observed.numpy() <= high)
        assert np.array_equal(inside.numpy(), expected)


@pytest.mark.parametrize(("number", "levels"), [(40, (0.5, 0.8, 0.9, 0.95)), (5, (0.3, 0.5, 0.66))])
def test_intervals_of_few_draws_hold_as_much_as_they_say(number: int, levels: tuple[float, ...]) -> None:
    """Of an exact prediction, uniform so that interpolation is exact; 7 within 4 sds fail once in 2,000 seeds."""
    draws = uniforms(number + 1, 20_000, seed=12)
    found = interval_coverage(draws[1:], draws[0], levels).double().mean(1)
    for level, share in zip(levels, found.tolist(), strict=True):
        z = (share - level) / math.sqrt(level * (1 - level) / 20_000)
        print(f"{number} draws, {level:g}: {share:.4f}, z {z:.1f}")
        assert abs(z) < 4


def test_pit_is_uniform_of_few_draws_and_of_counts() -> None:
    """Kolmogorov-Smirnov p-values of what is exactly uniform; four above 0.001 fail once in 250 seeds."""
    laws = {
        "normal": scipy.stats.norm(),
        "few counts": scipy.stats.poisson(1.5),
        "many counts": scipy.stats.poisson(30.0),
        "0 or 1": scipy.stats.bernoulli(0.3),
    }
    for seed, (name, law) in enumerate(laws.items()):
        sample = law.ppf(uniforms(4, 5000, seed=10 + seed).numpy())
        found = pit(sample[:3], sample[3], generator(seed))
        p_value = scipy.stats.kstest(found.numpy(), "uniform").pvalue
        print(f"{name}: {p_value:.3f}")
        assert p_value > 0.001
    assert pit(numbers(3, 5000, seed=20), numbers(5000, seed=21) + 0.5, generator()).mean() > 0.6
    sure = pit([[0.0], [0.0]], [1.0], generator(1))
    assert 2 / 3 <= float(sure) <= 1


@pytest.mark.parametrize("digits", [1, 10])
def test_auroc_of_scikit_learn(digits: int) -> None:
    outside, inside = (numbers(n, seed=n).mul(10**digits).round().numpy() for n in (70, 110))
    outside += 0.3 * 10**digits
    labels = np.repeat([1, 0], [70, 110])
    expected = sklearn.metrics.roc_auc_score(labels, np.concatenate([outside, inside]))
    assert auroc(outside, inside) == pytest.approx(expected, rel=1e-12)


def of_classes() -> Prediction:
    """Two sites whose mean probabilities are known."""
    return Prediction(
        {"one": (uniforms(2, 50, 500, seed=30) < P).double(), "many": LABELS.expand(2, 50, 500)},
        mean={"one": P, "many": CLASSES},
        sd={"one": (P * (1 - P)).sqrt()},
    )


def test_metrics_of_classes() -> None:
    found = calibration(of_classes(), {"one": HAPPENED, "many": LABELS})
    one, many = (found.table.loc[site, "value"] for site in ("one", "many"))
    assert found.table.index.names == ["site", "metric"]
    assert one["log_predictive_density"] == pytest.approx(-sklearn.metrics.log_loss(HAPPENED, P), rel=1e-9)
    assert many["log_predictive_density"] == pytest.approx(-sklearn.metrics.log_loss(LABELS, CLASSES), rel=1e-9)
    assert one["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(HAPPENED, P >= 0.5))
    assert many["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(LABELS, CLASSES.argmax(-1)))
    assert one["brier"] == pytest.approx(float(brier_score(P, HAPPENED).mean()))
    assert many["brier"] == pytest.approx(float(brier_score(CLASSES, LABELS).mean()))
    confidence, chosen = CLASSES.max(-1)
    expected = expected_calibration_error(confidence, chosen == LABELS)
    assert many["expected_calibration_error"] == pytest.approx(expected)
    assert one["expected_calibration_error"] == pytest.approx(expected_calibration_error(P, HAPPENED))
    error = found.table.loc[("one", "brier"), "standard_error"]
    assert error == pytest.approx(float(brier_score(P, HAPPENED).std()) / math.sqrt(500))
    assert found.reliability.loc["one"].equals(reliability(P, HAPPENED))
    assert found.pit == {}
    assert len(found.plot().axes) == 4


def test_the_density_of_a_row_is_that_of_all_its_events() -> None:
    """As a posterior without uncertainty has it, whose events are independent."""

    def model(x: Tensor, y: Tensor | None = None) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Bernoulli(logits=x[:, None] * w).to_event(1), obs=y)

    x, y = numbers(50, seed=86), (uniforms(50, 3, seed=87) < 0.5).double()
    w = numbers(3, seed=88)
    posterior = posterior_of(compile_model(model, {"x": x, "y": y}), {"w": w.expand(2, 5, 3)})
    joint = calibration(posterior).table.loc[("obs", "log_predictive_density")]
    marginal = calibration(posterior.predict({"x": x}), y).table.loc[("obs", "log_predictive_density")]
    rows = dist.Bernoulli(logits=x[:, None] * w).log_prob(y).sum(1)
    for value, error in (joint, marginal):
        assert value == pytest.approx(float(rows.mean()), rel=1e-6)
        assert error == pytest.approx(float(rows.std()) / math.sqrt(50), rel=1e-6)


def test_labels_of_every_type() -> None:
    prediction = of_classes()
    expected = calibration(prediction, {"one": HAPPENED, "many": LABELS}).table
    for one, many in ((HAPPENED.bool(), LABELS.double()), (HAPPENED.numpy(), LABELS.numpy()), (HAPPENED.int(), LABELS)):
        assert calibration(prediction, {"one": one, "many": many}).table.equals(expected)


def of_normals(shape: tuple[int, ...] = (400,), spread: float = 1.0) -> tuple[Prediction, Tensor]:
    center = numbers(*shape, seed=40)
    draws = center + spread * numbers(4, 100, *shape, seed=41)
    return Prediction({"obs": draws}, {"obs": center}, {"obs": torch.ones(shape)}), center + numbers(*shape, seed=42)


@pytest.mark.parametrize("shape", [(400,), (200, 2)])
def test_metrics_of_numbers(shape: tuple[int, ...]) -> None:
    """Coverage within 4 of its standard errors: four at once fail once in 4000 seeds."""
    prediction, observed = of_normals(shape)
    found = calibration(prediction, observed, levels=(0.5, 0.9))
    table, draws = found.table.loc["obs"], prediction.draws["obs"].flatten(0, 1)
    expected = sklearn.metrics.root_mean_squared_error(observed.reshape(400), prediction.mean["obs"].reshape(400))
    assert table.loc["rmse", "value"] == pytest.approx(expected)
    assert table.loc["crps", "value"] == pytest.approx(float(crps(draws, observed).mean()))
    for level, inside in zip((50, 90), interval_coverage(draws, observed, (0.5, 0.9)), strict=True):
        value, error = table.loc[f"coverage_{level}"]
        assert value == pytest.approx(float(inside.double().mean()))
        assert abs(value - level / 100) < 4 * error
    assert list(table.index) == ["rmse", "crps", "coverage_50", "coverage_90"]
    assert found.pit["obs"].shape == shape
    assert found.reliability.empty
    rows = (observed - prediction.mean["obs"]).square().reshape(len(observed), -1).mean(1)
    error = float(rows.std()) / math.sqrt(len(rows)) / (2 * expected)
    assert table.loc["rmse", "standard_error"] == pytest.approx(error)
    assert len(found.plot().axes) == 2


def test_too_narrow_and_too_wide_draws_are_seen() -> None:
    for spread, higher in ((0.5, False), (2.0, True)):
        prediction, observed = of_normals(spread=spread)
        value, error = calibration(prediction, observed).table.loc[("obs", "coverage_80")]
        assert (value - 0.8 > 4 * error) if higher else (value - 0.8 < -4 * error)


def test_counts_are_no_probabilities_though_draws_are_0_and_1() -> None:
    rate = torch.full((200,), 0.05, dtype=torch.float64)
    draws = (uniforms(1, 50, 200, seed=50) < 0.05).double()
    counts = Prediction({"obs": draws}, {"obs": rate}, {"obs": rate.sqrt()})
    assert "crps" in calibration(counts, draws[0, 0]).table.loc["obs"].index
    nothing_known = Prediction({"obs": draws})
    assert calibration(nothing_known, draws[0, 0]).table.loc[("obs", "rmse"), "value"] > 0


def test_too_few_draws_for_an_interval(caplog: pytest.LogCaptureFixture) -> None:
    prediction = Prediction({"obs": numbers(1, 19, 50, seed=60)})
    with caplog.at_level(logging.WARNING, "pyro_scale"):
        table = calibration(prediction, numbers(50, seed=61), levels=(0.5, 0.9)).table.loc["obs"]
    assert math.isnan(table.loc["coverage_90", "value"]) and not math.isnan(table.loc["coverage_50", "value"])
    assert caplog.messages == [
        "A central interval of 90 % takes 20 predictive draws to tell its ends, and there are 19. Run with more "
        "num_samples."
    ]


@pytest.fixture(scope="module")
def exact() -> Posterior:
    x = numbers(200, 2, seed=70)
    return exact_posterior(x, x.sum(1) + 0.5 * numbers(200, seed=71), num_chains=2, num_samples=200)


def test_a_posterior_predicts_itself(exact: Posterior) -> None:
    new = {"x": numbers(300, 2, seed=72)}
    y = new["x"].sum(1) + 0.5 * numbers(300, seed=73)
    prediction = exact.predict({**new, "y": y}, seed=3)
    expected = calibration(prediction, y, seed=3).table
    assert calibration(exact, {**new, "y": y}, seed=3).table.equals(expected)
    density = prediction.log_predictive_density["obs"]
    assert expected.loc[("obs", "log_predictive_density"), "value"] == pytest.approx(float(density.mean()))
    fitted = calibration(exact, num_samples=50)
    assert fitted.pit["obs"].shape == (200,)
    assert calibration(exact, num_samples=50).table.equals(fitted.table)


def logistic(x: Tensor, y: Tensor | None = None) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[-1]]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Bernoulli(logits=x @ w), obs=y)


def test_a_model_of_classes() -> None:
    x = numbers(100, 2, seed=80)
    y = (uniforms(100, seed=81) < x.sum(1).sigmoid()).double()
    posterior = posterior_of(compile_model(logistic, {"x": x, "y": y}), {"w": 1 + 0.3 * numbers(2, 40, 2, seed=82)})
    found = calibration(posterior).table.loc["obs", "value"]
    p = (posterior.draws["w"].flatten(0, 1) @ x.T).sigmoid().mean(0)
    assert found["log_predictive_density"] == pytest.approx(-sklearn.metrics.log_loss(y, p), rel=1e-9)
    assert found["brier"] == pytest.approx(sklearn.metrics.brier_score_loss(y, p), rel=1e-9)


def test_each_kind_of_uncertainty_tells_what_is_outside(exact: Posterior) -> None:
    near, far = (exact.predict({"x": scale * numbers(200, 2, seed=83)}) for scale in (1.0, 6.0))
    table = ood_auroc(near, far)
    assert list(table.index) == [("obs", kind) for kind in ("total", "aleatoric", "epistemic")]
    labels = np.repeat([1, 0], 200)
    for kind in ("total", "epistemic"):
        scores = torch.cat([getattr(far, kind)["obs"], getattr(near, kind)["obs"]])
        assert table.loc[("obs", kind), "auroc"] == pytest.approx(sklearn.metrics.roc_auc_score(labels, scores))
    assert table.loc[("obs", "epistemic"), "auroc"] > 0.9
    assert table.loc[("obs", "aleatoric"), "auroc"] == 0.5  # the noise is the same everywhere
    several = [
        Prediction({"v": numbers(1, 1, 5, 2, seed=84)}, total={"v": 1 + k + uniforms(5, 2, seed=85)}) for k in (0, 2)
    ]
    assert ood_auroc(*several).loc[("v", "total"), "auroc"] == 1


FINE = Prediction({"obs": numbers(2, 10, 5, seed=90)})
TWO = of_classes()
BAD: dict[str, tuple[Any, str]] = {
    "labels": (lambda: brier_score(P, LABELS), "must be 0 or 1; for more classes"),
    "a class never seen": (lambda: brier_score(CLASSES, LABELS + 1), "Label 4 is none of the 4 classes.*0 to 3"),
    "words": (lambda: brier_score(["yes", "no"], [1, 0]), "probabilities: got a list; pass numbers"),
    "half a class": (lambda: brier_score(CLASSES, LABELS + 0.5), "is none of the 4 classes"),
    "brier shapes": (lambda: brier_score(CLASSES, LABELS[:3]), r"shape \(500, 4\) and labels \(3,\)"),
    "crps shapes": (lambda: crps(numbers(2, 10, 5, seed=0), numbers(5, seed=0)), r"by flatten\(0, 1\)"),
    "no draws": (lambda: crps(np.zeros((0, 5)), np.zeros(5)), r"draws have shape \(0, 5\)"),
    "levels": (lambda: interval_coverage([[1.0]], [1.0], [90]), r"levels are \[90\]; each must be between 0 and 1"),
    "bins": (lambda: reliability(P, HAPPENED, 0), "num_bins is 0"),
    "logits": (lambda: reliability(5 * P, HAPPENED), "must be probabilities, and 0 or 1"),
    "reliability shapes": (lambda: reliability(P, HAPPENED[:3]), r"shape \(500,\) and happened \(3,\)"),
    "auroc": (lambda: auroc([], [1.0]), r"shapes \(0,\) and \(1,\)"),
    "auroc nan": (lambda: auroc([math.nan], [1.0]), "not NaN"),
    "no predictions": (lambda: ood_auroc(P, P), "ood_auroc got a Tensor; it takes two predictions"),
    "no uncertainty": (lambda: ood_auroc(FINE, FINE), "no kind of uncertainty in common"),
    "neither": (lambda: calibration(P, HAPPENED), "calibration got a Tensor; it takes a prediction or a posterior"),
    "no observations": (lambda: calibration(FINE), "A prediction does not hold what was observed"),
    "no draws kept": (lambda: calibration(Prediction({}), P), "The prediction holds no draws: predict with them kept"),
    "several sites": (lambda: calibration(TWO, LABELS), "The prediction is of 'one', 'many': pass a dict"),
    "another site": (lambda: calibration(FINE, {"y": P}), "The prediction has no site 'y'; it has 'obs'"),
    "nothing": (lambda: calibration(FINE, {}), "data is empty; pass what was observed of 'obs'"),
    "other rows": (lambda: calibration(FINE, P), r"of shape \(5,\), and the observations have shape \(500,\)"),
    "nan": (lambda: calibration(FINE, P[:5] * math.nan), "Site 'obs' has 5 observations that are not finite"),
    "nan draws": (lambda: calibration(Prediction({"obs": FINE.draws["obs"] / 0}), P[:5]), "has 100 predictive draws"),
    "thinning": (lambda: calibration(FINE, P[:5], num_samples=3), "num_samples is of posteriors"),
    "unknown class": (lambda: calibration(TWO, {"many": LABELS + 1}), "Label 4 is none of the 4 classes"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_scored(name: str) -> None:
    call, message = BAD[name]
    with pytest.raises((ArgumentError, DataError), match=message):
        call()


def test_posteriors_that_cannot_be_scored(exact: Posterior) -> None:
    x = numbers(5, 2, seed=91)
    without = posterior_of(compile_model(regression, DATA), {"w": numbers(1, 5, 2, seed=92)})
    without.compiled = None
    cases: list[tuple[Posterior, Any, type[PyroScaleError], str]] = [
        (without, None, MissingModelError, "calibration runs the model, and this posterior was loaded without it"),
        (exact, {"x": x}, ArgumentError, "What site 'obs' was is to be set beside its prediction: pass 'y' in data"),
        (exact, {"x": x, "y": x[:3, 0]}, PyroScaleError, "y"),
    ]
    for posterior, data, kind, message in cases:
        with pytest.raises(kind, match=message):
            calibration(posterior, data)
