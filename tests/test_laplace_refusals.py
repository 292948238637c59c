"""What Laplace's approximation refuses, and what it says where something is amiss."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import pyro_scale as ps
from pyro_scale.errors import ArgumentError, MinibatchError, ModelError, NonFiniteError
from pyro_scale.kernels import MAP, DenseLaplace, DiagonalLaplace, KroneckerLaplace, LowRankLaplace
from pyro_scale.laplace_fit import laplace_at

KERNELS = [DiagonalLaplace, DenseLaplace, KroneckerLaplace, LowRankLaplace]
X = torch.randn(12, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
DATA = {"x": X, "y": X.sum(1)}


def linear(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(x @ w, 1.0), obs=y)


def said(call, error):
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"curvature": "gauss"}, "curvature is 'gauss'; it must be 'ggn' or 'fisher'"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be > 0. Without any spread a posterior is its mode"),
        ({"temperature": float("nan")}, "temperature is nan; it must be > 0"),
        ({"temperature": lambda step: 1.0}, "it must be a number > 0, as 1.0"),
        ({"sites": 3}, "sites is 3; it must be a name or pattern of latent sites"),
        ({"sites": []}, r"sites is \[\]; it must be a name or pattern"),
        ({"optimizer": "adam"}, "optimizer is 'adam'; it must be a MAP"),
    ],
)
def test_settings(kernel, settings, message):
    with pytest.raises(ArgumentError, match=f"^{kernel.__name__}: .*{message}"):
        kernel(**settings)


def test_settings_of_one_kernel():
    assert "curvature is 'hessian'; it must be 'ggn' or 'fisher'" in said(
        lambda: KroneckerLaplace(curvature="hessian"), ArgumentError
    )
    assert "rank is 0; it must be a whole number of at least 1" in said(lambda: LowRankLaplace(rank=0), ArgumentError)
    assert "passes is 0" in said(lambda: LowRankLaplace(passes=0), ArgumentError)


@pytest.mark.parametrize("kernel", KERNELS)
def test_sites_that_match_nothing(kernel):
    message = said(lambda: ps.infer(linear, DATA, kernel(sites=["w", "v*"]), seed=0), ArgumentError)
    assert message == f"{kernel.__name__}: sites has the pattern 'v*', which matches no latent site; they are 'w'."


def test_dense_beyond_memory_is_refused_before_any_step():
    net = torch.nn.Linear(200, 150, device="meta")
    model = ps.bayesian(net, prior=dist.Normal(0.0, 1.0), likelihood=lambda out: dist.Normal(out, 1.0).to_event(1))
    data = {"x": torch.ones(3, 200), "y": torch.ones(3, 150)}
    steps = []
    call = lambda: ps.infer(model, data, "laplace_dense", callback=steps.append)  # noqa: E731
    assert "30,150 coordinates make matrices too large; at most 20,000" in said(call, ArgumentError)
    assert not steps


def test_a_climb_that_is_not_over_is_told_with_its_gradient(caplog):
    kernel = DenseLaplace(optimizer=MAP(step_size=0.001))
    posterior = ps.infer(linear, DATA, kernel, warmup_steps=2, num_samples=2, seed=0)
    check = posterior.verdict["distance from the mode, in sds"]
    mode = posterior.approximation.mean["w"]
    gradient = X.T @ (DATA["y"] - X @ mode) - mode
    assert not check.passed and f"gradient norm {float(gradient.norm()):.3g}" in check.remedy
    precision = X.T @ X + torch.eye(2, dtype=torch.float64)
    away = (gradient @ torch.linalg.solve(precision, gradient) / 2) ** 0.5
    assert check.value == pytest.approx(float(away), rel=1e-6)
    assert "distance from the mode, in sds" in caplog.text


def flat(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    pyro.sample("v", dist.ImproperUniform(dist.constraints.real, (), (3,)))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(x @ w, 1.0), obs=y)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_flat_site_is_named_and_the_mode_kept(kernel):
    with pytest.raises(ModelError, match=r"flat in site 'v' \(3 of 3 directions\).* Give it a proper prior") as caught:
        ps.infer(flat, DATA, kernel(), warmup_steps=2, seed=0)
    assert caught.value.posterior.draws["w"].shape == (1, 1, 2)


def heavy(x, y=None):
    """A prior whose tails are not concave."""
    w = pyro.sample("w", dist.Cauchy(0.0, 0.1).expand([2]).to_event(1))
    v = pyro.sample("v", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(x @ (w / 100) + v, 1.0), obs=y)


@pytest.mark.parametrize("kernel", [DiagonalLaplace, DenseLaplace, KroneckerLaplace])
def test_directions_without_positive_precision_are_told(kernel):
    compiled = ps.compile_model(heavy, DATA)
    position = {"w": torch.tensor([1.0, -2.0], dtype=torch.float64), "v": torch.tensor(0.0, dtype=torch.float64)}
    checks = {check.name: check for check in laplace_at(compiled, kernel(), position, 0).checks}
    check = checks["directions without positive precision"]
    assert (check.value, check.passed) == (2, False) and "directions of 'w' (2)" in check.remedy


def test_low_rank_needs_a_concave_prior():
    compiled = ps.compile_model(heavy, DATA)
    position = {"w": torch.tensor([1.0, -2.0], dtype=torch.float64), "v": torch.tensor(0.0, dtype=torch.float64)}
    message = said(lambda: laplace_at(compiled, LowRankLaplace(), position, 0), ModelError)
    assert "the log prior of site 'w' is not concave at the mode (2 directions)" in message


def test_two_sites_that_rows_cannot_tell_apart():
    def model(x, y):
        w = pyro.sample("w", dist.ImproperUniform(dist.constraints.real, (), (2,)))
        v = pyro.sample("v", dist.ImproperUniform(dist.constraints.real, (), ()))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(x @ w + v * x[:, 0], 1.0), obs=y)

    compiled = ps.compile_model(model, DATA)
    fit = laplace_at(compiled, DenseLaplace(), compiled.initial_position(0), 0)
    check = {check.name: check for check in fit.checks}["directions without positive precision"]
    assert check.value == 1 and "give proper priors" in check.remedy


def mixture(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    parts = dist.Normal(torch.stack([x @ w, -(x @ w)], -1), 1.0)
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.MixtureSameFamily(dist.Categorical(torch.ones(2, dtype=x.dtype)), parts), obs=y)


def summed(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("obs", dist.Normal(x @ w * (2 * z - 1), 1.0), obs=y)


def factor(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    pyro.sample("one", dist.Normal(w.sum(), 1.0), obs=torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.factor("term", -((y - x @ w) ** 2) / 2)


def joint(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    pyro.sample("obs", dist.MultivariateNormal(x @ w, torch.eye(len(x), dtype=x.dtype) + 0.5), obs=y)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (mixture, "Site 'obs' is MixtureSameFamily, which does not name its parameters"),
        (summed, "Site 'z' is discrete and summed out, so that the likelihood is a mixture, and has no GGN"),
        (factor, "Site 'term' is a factor, which has no parameters, and has no GGN"),
        (joint, "Site 'obs' is one joint event of all rows, and has no GGN"),
    ],
)
def test_likelihoods_without_outputs(model, message):
    """The Hessian needs none; nor do gradients of rows, where rows have them."""
    said_of = said(lambda: ps.infer(model, DATA, "laplace_diag", seed=0), ModelError)
    assert said_of.startswith(message) and "curvature='" in said_of.replace("Use log_likelihood (", "")
    compiled = ps.compile_model(model, DATA)
    position = compiled.initial_position(0)
    assert laplace_at(compiled, DenseLaplace(curvature="hessian"), position, 0).gaussian is not None
    if model is joint:
        message = said(lambda: laplace_at(compiled, DenseLaplace(curvature="fisher"), position, 0), ModelError)
        assert message.startswith("Site 'obs' has one log density for all rows")
    else:
        assert laplace_at(compiled, DenseLaplace(curvature="fisher"), position, 0).gaussian is not None


def local(x, y=None):
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("obs", dist.Normal(z * scale, 1.0), obs=y)


def test_sites_with_a_value_for_each_row():
    message = said(lambda: ps.infer(local, DATA, "laplace_diag", batch_size=4, keep=["scale"], seed=0), MinibatchError)
    assert "'z'" in message and "vi_diag" in message
    compiled = ps.compile_model(local, DATA)
    fit = laplace_at(compiled, DenseLaplace(), compiled.initial_position(0), 0)  # all rows at once
    assert fit.gaussian.factor.shape == (13, 13)


def test_a_loader_is_refused():
    loader = DataLoader(TensorDataset(X, DATA["y"]), batch_size=4, shuffle=True)
    message = said(lambda: ps.infer(linear, loader, "laplace_kfac", seed=0), ArgumentError)
    assert "a DataLoader brings them shuffled" in message


def test_a_position_without_finite_gradient():
    compiled = ps.compile_model(linear, DATA)
    position = {"w": torch.tensor([torch.nan, 0.0], dtype=torch.float64)}
    message = said(lambda: laplace_at(compiled, DiagonalLaplace(), position, 0), NonFiniteError)
    assert "finite log posterior and gradient at the mode" in message and "'w'" in message


def test_batch_norm_in_training_mode():
    net = torch.nn.Sequential(torch.nn.Linear(2, 3, device="meta"), torch.nn.BatchNorm1d(3))
    with pytest.raises(ArgumentError, match=r"BatchNorm1d in training mode.* Call module\.eval\(\) first"):
        ps.bayesian(net, prior=dist.Normal(0.0, 1.0), likelihood=lambda out: dist.Normal(out, 1.0).to_event(1))
