"""Laplace's approximation against exact posteriors, numerical Hessians, and matrices put together by hand."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from laplace_cases import covariance_of, precision_of

import pyro_scale as ps
from pyro_scale import tree
from pyro_scale.kernels import DenseLaplace, DiagonalLaplace, KroneckerLaplace, LowRankLaplace
from pyro_scale.laplace_fit import laplace_at

ROWS = 17


def normals(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = normals(0, ROWS, 3)
NOISE = 0.7


def linear(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.5).expand([3]).to_event(1))
    b = pyro.sample("b", dist.Normal(1.0, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(x @ w + b, NOISE), obs=y)


DATA = {"x": X, "y": normals(1, ROWS)}


def exact():
    """Mean and covariance of `linear`, and log p(y)."""
    design = torch.cat([X, torch.ones(ROWS, 1, dtype=torch.float64)], 1)
    prior_mean = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    prior = torch.tensor([1.5, 1.5, 1.5, 2.0], dtype=torch.float64) ** 2
    covariance = torch.linalg.inv(torch.diag(1 / prior) + design.T @ design / NOISE**2)
    mean = covariance @ (prior_mean / prior + design.T @ DATA["y"] / NOISE**2)
    marginal = design @ torch.diag(prior) @ design.T + NOISE**2 * torch.eye(ROWS, dtype=torch.float64)
    evidence = torch.distributions.MultivariateNormal(design @ prior_mean, marginal).log_prob(DATA["y"])
    return mean, covariance, float(evidence)


@pytest.mark.parametrize("curvature", ["ggn", "hessian"])
@pytest.mark.parametrize("batch_size", [None, 5])
def test_dense_is_the_posterior_where_that_is_normal(curvature, batch_size):
    posterior = ps.infer(linear, DATA, DenseLaplace(curvature=curvature), batch_size=batch_size, num_samples=50, seed=0)
    mean, covariance, evidence = exact()
    torch.testing.assert_close(tree.ravel(posterior.approximation.mean), mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(covariance_of(posterior.approximation), covariance, rtol=1e-9, atol=1e-10)
    assert posterior.log_marginal_likelihood == pytest.approx(evidence, rel=1e-10)
    assert posterior.draws["w"].shape == (1, 50, 3)
    assert posterior.verdict["distance from the mode, in sds"].value < 1e-6 and posterior.verdict


@pytest.mark.parametrize("kernel", [LowRankLaplace(rank=4), LowRankLaplace(rank=4, curvature="hessian", passes=1)])
def test_low_rank_with_all_directions_is_dense(kernel):
    posterior = ps.infer(linear, DATA, kernel, batch_size=5, num_samples=2, seed=0)
    _, covariance, evidence = exact()
    torch.testing.assert_close(covariance_of(posterior.approximation), covariance, rtol=1e-8, atol=1e-10)
    assert posterior.log_marginal_likelihood == pytest.approx(evidence, rel=1e-8)


def test_diagonal_is_that_of_the_precision():
    posterior = ps.infer(linear, DATA, "laplace_diag", num_samples=2, seed=0)
    precision = torch.linalg.inv(exact()[1])
    torch.testing.assert_close(precision_of(posterior.approximation), torch.diag(precision.diagonal()))


def test_low_rank_takes_the_directions_of_which_rows_tell_most():
    """In units of the prior, whose sd is 1, by the eigenvectors of the rows' own matrix."""
    scale = torch.tensor([9.0, 5.0, 2.0, 1.0, 0.5, 0.2], dtype=torch.float64)
    x, y = normals(2, 40, 6) * scale, normals(3, 40)

    def model(x, y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([6]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(x @ w, 1.0), obs=y)

    posterior = ps.infer(model, {"x": x, "y": y}, LowRankLaplace(rank=2, passes=6), num_samples=2, seed=0)
    values, vectors = torch.linalg.eigh(x.T @ x)
    expected = torch.eye(6, dtype=torch.float64) + (vectors[:, -2:] * values[-2:]) @ vectors[:, -2:].T
    torch.testing.assert_close(precision_of(posterior.approximation), expected, rtol=1e-6, atol=1e-4)


def test_temperature_widens_and_leaves_no_evidence():
    for kernel in (DiagonalLaplace, DenseLaplace, KroneckerLaplace, LowRankLaplace):
        one = ps.infer(linear, DATA, kernel(), num_samples=2, seed=0)
        cold = ps.infer(linear, DATA, kernel(temperature=0.25), num_samples=2, seed=0)
        torch.testing.assert_close(covariance_of(cold.approximation), covariance_of(one.approximation) / 4)
        assert cold.log_marginal_likelihood is None


def poisson(x, w):
    return dist.Poisson((x @ w).exp())


def negative_binomial(x, w):
    return dist.NegativeBinomial(3.0, logits=x @ w)


def student(x, w):
    return dist.StudentT(4.0, x @ w, 0.5)


def beta(x, w):
    mean = (x @ w).sigmoid()
    return dist.Beta(6 * mean, 6 * (1 - mean))


def ordinal(x, w):
    return dist.OrderedLogistic(x @ w, torch.tensor([-1.0, 0.3, 1.1], dtype=x.dtype))


def zero_inflated(x, w):
    return dist.ZeroInflatedPoisson((x @ w).exp(), gate=torch.tensor(0.3, dtype=x.dtype))


def heteroscedastic(x, w):
    return dist.Normal(x @ w, (0.3 * (x @ w.flip(0))).exp())


COUNTS = torch.tensor([0, 1, 3, 2, 0, 0, 5, 1, 0, 2, 2, 0, 1, 4, 0, 1, 2], dtype=torch.float64)
SHARES = torch.linspace(0.05, 0.95, ROWS, dtype=torch.float64)
FAMILIES = [
    (poisson, COUNTS),
    (negative_binomial, COUNTS),
    (student, DATA["y"]),
    (beta, SHARES),
    (ordinal, COUNTS.clamp(max=3)),
    (zero_inflated, COUNTS),
    (heteroscedastic, DATA["y"]),
]


def compiled_family(family, y):
    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", family(x, w), obs=y)

    return ps.compile_model(model, {"x": X, "y": y})


def expected_information(family, w, y):
    """J' F J summed over rows, F by sums over all values or, where these are no numbers of a list, what it is known as.

    J is that of free outputs: the logarithm of a rate, logits, a location, the logarithm of a scale.
    """
    loc = X @ w
    if family is poisson:
        return X.T @ (loc.exp()[:, None] * X)
    if family is beta:
        # in the logarithms of both concentrations
        mean = loc.sigmoid()
        a, b = 6 * mean, 6 * (1 - mean)
        trigamma = torch.special.polygamma
        total = trigamma(1, torch.tensor(6.0, dtype=torch.float64))
        da, db = a * (1 - mean), -b * mean
        each = da**2 * trigamma(1, a) + db**2 * trigamma(1, b) - total * (da + db) ** 2
        return X.T @ (each[:, None] * X)
    if family is heteroscedastic:
        slope = 0.3 * X.flip(1)
        return X.T @ ((-0.6 * (X @ w.flip(0))).exp()[:, None] * X) + 2 * slope.T @ slope
    if family is ordinal:
        total = torch.zeros(3, 3, dtype=torch.float64)
        for value in range(4):

            def log_prob(at, value=value):
                cuts = torch.tensor([-1.0, 0.3, 1.1], dtype=torch.float64)
                below = torch.cat([torch.zeros(1), (cuts - at).sigmoid(), torch.ones(1)])
                return (below[value + 1] - below[value]).log()

            slope = torch.stack([torch.func.grad(log_prob)(one) for one in loc])
            p = torch.stack([log_prob(one) for one in loc]).exp()
            total += X.T @ ((p * slope**2)[:, None] * X)
        return total

    # no divergence is known: the Hessian at what was observed, where it is positive
    def row(at, y):
        one = torch.ones(1, dtype=torch.float64)
        return -family(at * one[:, None], one).log_prob(y).squeeze()

    def minus(at, y):
        if family is negative_binomial:
            return -torch.distributions.NegativeBinomial(3.0, logits=at).log_prob(y)
        if family is student:
            return 2.5 * torch.log1p(((y - at) / 0.5) ** 2 / 4)
        rate = at.exp()
        poisson_part = torch.log(torch.tensor(0.7)) + y * at - rate - torch.lgamma(y + 1)
        return -torch.where(y == 0, torch.log(0.3 + 0.7 * (-rate).exp()), poisson_part)

    second = torch.stack([hessian(minus)(at, one) for at, one in zip(loc, y, strict=True)])
    return X.T @ (second.clamp(min=0)[:, None] * X)


@pytest.mark.parametrize(("family", "y"), FAMILIES, ids=[family.__name__ for family, _ in FAMILIES])
def test_any_likelihood(family, y):
    compiled = compiled_family(family, y)
    position = {"w": torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)}

    def log_posterior(w):
        return family(X, w).log_prob(y).sum() + dist.Normal(0.0, 1.0).log_prob(w).sum()

    steps = 1e-5 * torch.eye(3, dtype=torch.float64)
    slopes = [slope(log_posterior, position["w"] + h) - slope(log_posterior, position["w"] - h) for h in steps]
    numerical = torch.stack(slopes) / 2e-5
    exactly = laplace_at(compiled, DenseLaplace(curvature="hessian"), position, 0)
    assert (torch.linalg.eigvalsh(-numerical) > 0).all()
    torch.testing.assert_close(precision_of(exactly.gaussian), -numerical, rtol=1e-5, atol=1e-5)
    ggn = laplace_at(compiled, DenseLaplace(), position, 0)
    expected = expected_information(family, position["w"], y) + torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(precision_of(ggn.gaussian), expected, rtol=1e-8, atol=1e-8)


def hessian(function):
    return torch.func.jacrev(torch.func.grad(function))


def slope(function, at):
    here = at.clone().requires_grad_()
    return torch.autograd.grad(function(here), here)[0]


def scaled(x, y=None):
    """A constrained site, in which the likelihood is no exponential family with one parameter."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(x @ w, noise), obs=y)


def test_hessian_of_a_constrained_site_is_numerical():
    posterior = ps.infer(scaled, DATA, DenseLaplace(curvature="hessian"), num_samples=400, seed=0)
    mode = tree.ravel(posterior.approximation.mean)

    def log_posterior(vector):
        w, log_noise = vector[:3], vector[3]
        likelihood = dist.Normal(X @ w, log_noise.exp()).log_prob(DATA["y"]).sum()
        half = math.log(2) + dist.Normal(0.0, 1.0).log_prob(log_noise.exp())
        return likelihood + dist.Normal(0.0, 1.0).log_prob(w).sum() + half + log_noise

    assert float(torch.func.grad(log_posterior)(mode).abs().max()) < 1e-6
    expected = -hessian(log_posterior)(mode)
    torch.testing.assert_close(precision_of(posterior.approximation), expected, rtol=1e-8, atol=1e-8)
    assert (posterior.draws["noise"] > 0).all()
    value = log_posterior(mode) + 2 * math.log(2 * math.pi) - torch.logdet(expected) / 2
    assert posterior.log_marginal_likelihood == pytest.approx(float(value), rel=1e-9)


def test_empirical_information_is_of_the_gradients_of_rows():
    compiled = ps.compile_model(scaled, DATA, batch_size=5)
    position = compiled.initial_position(3)

    def row(vector, x, y):
        return dist.Normal(x @ vector[:3], vector[3].exp()).log_prob(y)

    gradients = torch.stack(
        [torch.func.grad(row)(tree.ravel(position), x, y) for x, y in zip(X, DATA["y"], strict=True)]
    )
    prior = torch.eye(4, dtype=torch.float64)
    prior[3, 3] = 2 * (2 * position["noise"]).exp()
    expected = gradients.T @ gradients + prior
    found = laplace_at(compiled, DenseLaplace(curvature="fisher"), position, 0)
    torch.testing.assert_close(precision_of(found.gaussian), expected, rtol=1e-9, atol=1e-9)
    found = laplace_at(compiled, DiagonalLaplace(curvature="fisher"), position, 0)
    torch.testing.assert_close(precision_of(found.gaussian), torch.diag(expected.diagonal()), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sigma", [0.6, 1.0, 2.0])
def test_empirical_information_of_a_regression_in_closed_form(sigma):
    """Sum of r**2 x x' / sigma**4 over rows with residuals r: of the gradients r x / sigma**2 of log p."""

    def model(x, y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(x @ w, sigma), obs=y)

    w = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    residuals = DATA["y"] - X @ w
    expected = X.T @ (residuals.square()[:, None] * X) / sigma**4 + torch.eye(3, dtype=torch.float64)
    compiled = ps.compile_model(model, DATA, batch_size=5)
    found = laplace_at(compiled, DenseLaplace(curvature="fisher"), {"w": w}, 0)
    torch.testing.assert_close(precision_of(found.gaussian), expected, rtol=1e-10, atol=1e-10)


def test_a_part_of_the_sites_is_normal_given_the_others(tmp_path):
    whole = ps.infer(linear, DATA, "laplace_dense", num_samples=3, seed=0)
    part = ps.infer(linear, DATA, DenseLaplace(sites="w"), num_samples=30, seed=0)
    torch.testing.assert_close(precision_of(part.approximation), precision_of(whole.approximation)[:3, :3])
    torch.testing.assert_close(part.approximation.mean, whole.approximation.mean)
    mode = whole.approximation.mean
    torch.testing.assert_close(part.draws["b"], mode["b"].expand(1, 30))
    assert part.draws["w"].std(1).min() > 0
    assert part.predict({"x": X[:4]}).mean["obs"].shape == (4,)
    gaussian = torch.distributions.MultivariateNormal(mode["w"], precision_matrix=precision_of(part.approximation))
    away = {"w": mode["w"] + 1, "b": mode["b"]}
    torch.testing.assert_close(part.approximation.log_prob(away), gaussian.log_prob(away["w"]))
    part.save(tmp_path / "part.nc")
    again = ps.load(tmp_path / "part.nc", model=linear, data=DATA)
    assert again.log_marginal_likelihood == part.log_marginal_likelihood
    torch.testing.assert_close(again.sample(5, seed=1), part.sample(5, seed=1))


def hierarchical(x, y=None):
    """A prior whose curvature is not diagonal: within a site, and between two."""
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    covariance = torch.eye(3, dtype=x.dtype) + 0.5
    w = pyro.sample("w", dist.MultivariateNormal(torch.zeros(3, dtype=x.dtype), covariance))
    v = pyro.sample("v", dist.Normal(0.0, scale).expand([3]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(x @ w + x.sin() @ v, 1.0), obs=y)


@pytest.mark.parametrize("kernel", [DiagonalLaplace, DenseLaplace, LowRankLaplace])
def test_a_prior_that_joins_coordinates(kernel):
    compiled = ps.compile_model(hierarchical, DATA)
    position = compiled.initial_position(5)
    shapes = tree.shapes(position)
    terms = hessian(lambda at: compiled(tree.unravel(at, shapes), compiled.batch()))(tree.ravel(position))
    fit = laplace_at(compiled, kernel(curvature="hessian"), position, 0)
    if kernel is DiagonalLaplace:
        expected = torch.diag(-terms.diagonal()).abs()
    else:
        assert torch.linalg.eigvalsh(-terms).min() > 0
        expected = -terms
    torch.testing.assert_close(precision_of(fit.gaussian), expected, rtol=1e-7, atol=1e-7)


def test_float32():
    data = {name: value.float() for name, value in DATA.items()}
    _, covariance, evidence = exact()
    for method in ("laplace_dense", "laplace_lowrank"):
        posterior = ps.infer(linear, data, method, num_samples=2, seed=0)
        gaussian = posterior.approximation
        assert tree.ravel(gaussian.mean).dtype == torch.float32
        draws = posterior.sample(20_000, seed=1)
        sd = torch.cat([draws["w"], draws["b"].unsqueeze(-1)], 1).double().std(0)
        # four sds of 20,000 draws: each fails once in 50,000 seeds at 3 %, three standard errors being 1.5 %
        torch.testing.assert_close(sd, covariance.diagonal().sqrt(), rtol=0.03, atol=0)
        assert posterior.log_marginal_likelihood == pytest.approx(evidence, rel=1e-4)
