"""Pyro models that every promise about compilation is tested on. A model is a row of `CASES`, never a special case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import discrete_models
import local_models
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyro_scale import bayesian
from pyro_scale.data import Model

N = 24
DIM = 3
GROUPS = 4
CLASSES = 3
OWN = 6


@dataclass(frozen=True)
class Case:
    """A model with its data.

    Attributes:
        name: of the test's parameter.
        model: the Pyro model.
        data: arguments with N rows.
        constants: arguments handed over whole.
        minibatch: whether the log density splits over rows.
        declares_size: whether its plate names N itself, so that Pyro scales a subset of rows.
        vmaps: whether Pyro's own distributions allow vmap.
        outputs: observed sites whose distribution names its parameters.
        arguments: observed site -> the argument that feeds it, None where no argument can be told.
        dims: site -> names of its axes, for sites where they are not all None.
        local: latent site with a value a row -> the axis of the rows.
        twin: the same model with the sums over discrete sites written out, whose density Pyro's trace has.
        discrete: sites that are summed out, and what depends on them and so has no draws.
        passed: the same density with rows as arguments, and these: for models that read rows by their plate's indices.
    """

    name: str
    model: Callable[..., Any]
    data: dict[str, Any]
    constants: dict[str, Any] = field(default_factory=dict)
    minibatch: bool = True
    declares_size: bool = False
    vmaps: bool = True
    outputs: tuple[str, ...] = ("obs",)
    arguments: dict[str, str | None] = field(default_factory=lambda: {"obs": "y"})
    dims: dict[str, tuple[str | None, ...]] = field(default_factory=lambda: {"obs": ("data",)})
    local: dict[str, int] = field(default_factory=dict)
    twin: Callable[..., Any] | None = None
    discrete: tuple[str, ...] = ()
    passed: tuple[Callable[..., Any], dict[str, Any]] | None = None

    @property
    def by_rows(self) -> tuple[Callable[..., Any], dict[str, Any]]:
        """A model that takes its rows as arguments and has no discrete sites, and all of them."""
        model, data = self.passed or (self.model, self.data)
        return self.twin or model, data


def double(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole(high: int, *shape: int, seed: int) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


X = double(N, DIM, seed=1)
Y = double(N, seed=2)
COUNTS = whole(6, N, seed=3)
LABELS = whole(2, N, seed=4)
CLASS = whole(CLASSES, N, seed=5)
GROUP = whole(GROUPS, N, seed=6)
FRACTIONS = double(N, seed=7).sigmoid()
TABLE = torch.nn.functional.one_hot(whole(DIM, N, 5, seed=10), DIM).sum(1)
SERIES = double(N, 4, seed=11)
MATRIX = double(N, DIM, seed=8)
WEIGHTS = double(N, seed=9).exp()


def normal(*shape: int) -> Any:
    return dist.Normal(0.0, 1.0).expand(shape).to_event(len(shape))


def linear(x: Tensor, y: Tensor | None = None) -> None:
    w = pyro.sample("w", normal(DIM))
    b = pyro.sample("b", dist.StudentT(4.0, 0.0, 2.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(x @ w + b, sigma), obs=y)


def linear_by_index(x: Tensor, y: Tensor, rows: Tensor, size: int) -> None:
    w = pyro.sample("w", normal(DIM))
    with pyro.plate("data", size, subsample=rows):
        pyro.sample("obs", dist.Normal(x @ w, 1.5), obs=y)


def linear_by_index_in_constants(rows: Tensor, x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", normal(DIM))
    with pyro.plate("data", len(x), subsample=rows) as index:
        pyro.sample("obs", dist.Normal(x[index] @ w, 1.5), obs=y[index])


def logistic(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", normal(DIM))
    with pyro.plate("data", x.shape[0]):
        pyro.sample("obs", dist.Bernoulli(logits=x @ w), obs=y)


def multinomial_regression(x: Tensor, y: Tensor) -> None:
    weights = pyro.sample("weights", normal(DIM, CLASSES))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Categorical(logits=x @ weights), obs=y)


def total_counts(y: Tensor) -> None:
    p = pyro.sample("p", dist.Dirichlet(torch.full((CLASSES,), 2.0)))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Multinomial(7, probs=p), obs=y)


def negative_binomial(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", normal(DIM))
    concentration = pyro.sample("concentration", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.NegativeBinomial(concentration, logits=x @ w), obs=y)


def beta_regression(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", normal(DIM))
    precision = pyro.sample("precision", dist.LogNormal(1.0, 0.5))
    with pyro.plate("data", len(x)):
        mean = (x @ w).sigmoid()
        pyro.sample("obs", dist.Beta(mean * precision, (1 - mean) * precision), obs=y)


def ordered_logistic(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", normal(DIM))
    cuts = pyro.sample("cuts", dist.ImproperUniform(dist.constraints.ordered_vector, (), (CLASSES - 1,)))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.OrderedLogistic(x @ w, cuts), obs=y)


def improper(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
    sigma = pyro.sample("sigma", dist.ImproperUniform(dist.constraints.positive, (), ()))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(mu, sigma), obs=y)


def groups(g: Tensor, y: Tensor, num_groups: int) -> None:
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    with pyro.plate("groups", num_groups, dim=-1):
        effect = pyro.sample("effect", dist.Normal(0.0, tau))
        rate = pyro.sample("rate", dist.Gamma(2.0, 2.0).expand([2]).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(effect[g], rate[g, 0] + rate[g, 1]), obs=y)


def nested_groups(g: Tensor, y: Tensor, num_groups: int) -> None:
    with pyro.plate("items", DIM, dim=-1):
        level = pyro.sample("level", dist.Normal(0.0, 2.0))
        with pyro.plate("groups", num_groups, dim=-2):
            effect = pyro.sample("effect", dist.Normal(level, 1.0))
    with pyro.plate("data", len(y), dim=-2), pyro.plate("columns", DIM, dim=-1):
        pyro.sample("obs", dist.Normal(effect[g], 1.0), obs=y)


def several_observed(x: Tensor, y: Tensor, count: Tensor) -> None:
    w = pyro.sample("w", normal(DIM))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(x @ w, 1.0), obs=y)
        pyro.sample("label", dist.Bernoulli(logits=2 * x @ w), obs=(y > 0).double())
    with pyro.plate("counts", len(count)):
        pyro.sample("count", dist.Poisson((x @ w).exp()), obs=count)


def supports(y: Tensor) -> None:
    tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
    below = pyro.sample("below", dist.Uniform(0.0, tau))
    between = pyro.sample("between", dist.Uniform(torch.tensor(-1.0), 3.0))
    unit = pyro.sample("unit", dist.Beta(2.0, 3.0))
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(DIM)).expand([2]).to_event(1))
    beyond = pyro.sample("beyond", dist.Pareto(1.0, 3.0))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(between + beyond + weights[0, 1] * weights[1, 2], below + unit), obs=y)


def correlated(y: Tensor) -> None:
    mu = pyro.sample("mu", normal(DIM))
    scales = pyro.sample("scales", dist.HalfNormal(1.0).expand([DIM]).to_event(1))
    factor = pyro.sample("factor", dist.LKJCholesky(DIM, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.MultivariateNormal(mu, scale_tril=scales[:, None] * factor), obs=y)


def deterministic_sites(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", normal(DIM))
    log_sigma = pyro.sample("log_sigma", dist.Normal(0.0, 1.0))
    sigma = pyro.deterministic("sigma", log_sigma.exp())
    with pyro.plate("data", len(x)):
        mean = pyro.deterministic("mean", x @ w)
        pyro.sample("obs", dist.Normal(mean, sigma), obs=y)


def factors(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", normal(DIM))
    pyro.factor("ridge", -0.3 * (w**2).sum())
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(x @ w, 1.0), obs=y)
        pyro.factor("penalty", -0.1 * (x @ w) ** 4)


def only_factor(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", normal(DIM))
    with pyro.plate("data", len(x)):
        pyro.factor("loss", -((y - x @ w).abs()))


def tempered(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with poutine.scale(scale=0.5), pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)


def weighted(y: Tensor, weight: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)), poutine.scale(scale=weight):
        pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)


def weighted_by_index(y: Tensor, weight: Tensor, rows: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N, subsample=rows), poutine.scale(scale=weight):
        pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)


def masked(x: Tensor, y: Tensor, known: Tensor) -> None:
    w = pyro.sample("w", normal(DIM))
    with pyro.plate("data", len(y)), poutine.mask(mask=known):
        pyro.sample("obs", dist.Normal(x @ w, 1.0), obs=y)


def masked_distribution(y: Tensor, known: Tensor) -> None:
    mu = pyro.sample("mu", normal(DIM))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(mu, 1.0).mask(known).to_event(1), obs=y)


def without_plate(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", normal(DIM))
    pyro.sample("obs", dist.Normal(x @ w, 1.0), obs=y)


def scalar_without_plate(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)


def event_axis(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", normal(DIM))
    pyro.sample("obs", dist.Normal(x @ w, 1.0).to_event(1), obs=y)


def event_axes(y: Tensor, weight: Tensor) -> None:
    mu = pyro.sample("mu", normal(DIM))
    with poutine.scale(scale=2.0), poutine.mask(mask=True):
        pyro.sample("obs", dist.Normal(mu.expand(len(y), DIM), weight[:, None]).to_event(2), obs=y)


def weighted_columns(y: Tensor, weight: Tensor, known: Tensor) -> None:
    mu = pyro.sample("mu", normal(DIM))
    with pyro.plate("columns", DIM), poutine.scale(scale=weight), poutine.mask(mask=known):
        pyro.sample("obs", dist.Normal(mu[:, None].expand(DIM, len(y)), 1.0).to_event(1), obs=y.T)


def multivariate_rows(x: Tensor, y: Tensor) -> None:
    weights = pyro.sample("weights", normal(DIM, DIM))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(x @ weights, 1.0).to_event(1), obs=y)


def mixture(y: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    means = pyro.sample("means", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    components = dist.Normal(means, 1.0)
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.MixtureSameFamily(dist.Categorical(weights), components), obs=y)


def mixture_prior(y: Tensor) -> None:
    narrow_and_wide = dist.Normal(torch.zeros(2), torch.tensor([0.1, 3.0]))
    mu = pyro.sample("mu", dist.MixtureSameFamily(dist.Categorical(torch.ones(2) / 2), narrow_and_wide))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)


def mixture_priors(y: Tensor) -> None:
    """Supports of mixtures within an event, with a bound, and with an event within the mixture."""
    shares = dist.Categorical(torch.tensor([0.2, 0.8]))
    each = pyro.sample("each", dist.MixtureSameFamily(shares, dist.Normal(torch.zeros(2), 1.0)).expand([3]).to_event(1))
    sigma = pyro.sample("sigma", dist.MixtureSameFamily(shares, dist.LogNormal(torch.tensor([0.0, 1.0]), 0.5)))
    whole = pyro.sample("whole", dist.MixtureSameFamily(shares, dist.Normal(torch.zeros(2, 3), 1.0).to_event(1)))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal((each * whole).sum(), sigma), obs=y)


def survival(y: Tensor, seen: Tensor) -> None:
    """Censored times: the density where the event was seen, the survival function where it was not."""
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(y)):
        with poutine.mask(mask=seen):
            pyro.sample("obs", dist.Exponential(rate), obs=y)
        with poutine.mask(mask=~seen):
            pyro.factor("censored", -rate * y)


def bounded_data(y: Tensor) -> None:
    """The support of the observation depends on a latent site, so that no value can be called wrong beforehand."""
    bound = pyro.sample("bound", dist.Pareto(1.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Uniform(0.0, bound), obs=y)


class Network(torch.nn.Module):
    """A model with priors over the weights it holds the shapes of, and a distribution made once."""

    def __init__(self) -> None:
        super().__init__()
        self.prior = dist.Normal(torch.zeros((), dtype=torch.float64), 1.0, validate_args=True)
        self.register_buffer("offset", torch.full((), 0.5, dtype=torch.float64))

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        first = pyro.sample("first", self.prior.expand([DIM, 4]).to_event(2))
        second = pyro.sample("second", self.prior.expand([4]).to_event(1))
        with pyro.plate("data", len(x)):
            mean = pyro.deterministic("mean", (x @ first).tanh() @ second + self.offset)
            pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)


class Prior:
    """A callable object, holding a validating mixture."""

    def __init__(self) -> None:
        scales = torch.tensor([0.1, 3.0], dtype=torch.float64)
        self.mixture = dist.MixtureSameFamily(
            dist.Categorical(torch.ones(2, dtype=torch.float64) / 2, validate_args=True),
            dist.Normal(torch.zeros(2, dtype=torch.float64), scales, validate_args=True),
            validate_args=True,
        )

    def __call__(self, y: Tensor) -> None:
        mu = pyro.sample("mu", self.mixture)
        with pyro.plate("data", len(y)):
            pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)


def params(x: Tensor, y: Tensor) -> None:
    """Parameters without a prior: bounded, from a function, within the plate, and a simplex."""
    scale = pyro.param("scale", torch.tensor(1.5), constraint=dist.constraints.positive)
    shift = pyro.param("shift", lambda: torch.linspace(-1.0, 1.0, DIM))
    mix = pyro.param("mix", torch.tensor([0.2, 0.8]), constraint=dist.constraints.simplex)
    w = pyro.sample("w", normal(DIM))
    with pyro.plate("data", len(x)):
        offset = pyro.param("offset", torch.tensor([0.3]), event_dim=0)
        pyro.sample("obs", dist.Normal((x - shift) @ w + offset * mix[1], scale), obs=y)


class LastLayer(pyro.nn.PyroModule):
    """Priors on one layer, ordinary parameters in the other, and a bounded one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = pyro.nn.PyroModule[torch.nn.Linear](DIM, 2)
        self.last = pyro.nn.PyroModule[torch.nn.Linear](2, 1)
        self.last.weight = pyro.nn.PyroSample(dist.Normal(0.0, 1.0).expand([1, 2]).to_event(2))
        self.scale = pyro.nn.PyroParam(torch.tensor(0.7), constraint=dist.constraints.positive)
        with torch.no_grad():
            self.first.weight.copy_(double(2, DIM, seed=20))
            self.first.bias.copy_(double(2, seed=21))
            self.last.bias.fill_(0.25)
        self.double()

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        mean = self.last(self.first(x).tanh()).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, self.scale), obs=y)


class Registered:
    """A network whose parameters `pyro.module` makes known to Pyro."""

    def __init__(self) -> None:
        self.network = torch.nn.Linear(DIM, 2, dtype=torch.float64)
        with torch.no_grad():
            self.network.weight.copy_(double(2, DIM, seed=22))
            self.network.bias.copy_(double(2, seed=23))

    def __call__(self, x: Tensor, y: Tensor | None = None) -> None:
        network = pyro.module("network", self.network)
        w = pyro.sample("w", normal(2))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(network(x) @ w, 1.0), obs=y)


def network_with_priors() -> Model:
    """A module of torch, whose parameters are the sites."""
    layers = [torch.nn.Linear(DIM, 4, device="meta"), torch.nn.Tanh(), torch.nn.Linear(4, 1, device="meta")]
    return bayesian(
        torch.nn.Sequential(*layers),
        prior={"*.bias": dist.Normal(0.0, 2.0), "*": lambda name, value: dist.Normal(0.0, value.shape[-1] ** -0.5)},
        likelihood=lambda out: dist.Normal(out.squeeze(-1), pyro.sample("noise", dist.HalfNormal(1.0))),
    )


class RegressionWithPriors(pyro.nn.PyroModule):
    """Priors set on the parameters of a network, as in Pyro's tutorial."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = pyro.nn.PyroModule[torch.nn.Linear](DIM, 1)
        self.linear.weight = pyro.nn.PyroSample(dist.Normal(0.0, 1.0).expand([1, DIM]).to_event(2))
        self.linear.bias = pyro.nn.PyroSample(dist.Normal(0.0, 10.0).expand([1]).to_event(1))

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)


def two_sided(x: Tensor, y: Tensor) -> None:
    """One observation of constants, which enters once, beside the rows."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("calibration", dist.Normal(mu, 0.5), obs=torch.tensor(0.7))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(mu * x[:, 0], 1.0), obs=y)


def partly_observed(x: Tensor, y: Tensor, known: Tensor) -> None:
    w = pyro.sample("w", normal(DIM))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(x @ w, 1.0), obs=y, obs_mask=known)


def gaussian_process(x: Tensor, y: Tensor) -> None:
    length = pyro.sample("length", dist.LogNormal(0.0, 1.0))
    covariance = torch.exp(-((x - x[:, None]) ** 2).sum(-1) / length**2) + torch.eye(len(x))
    pyro.sample("obs", dist.MultivariateNormal(torch.zeros(len(x)), covariance), obs=y)


def factor_over_rows(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", normal(DIM))
    pyro.factor("loss", -((y - x @ w) ** 2).sum())
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(x @ w, 1.0), obs=y)


def sequential(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    for i in pyro.plate("data", len(y)):
        pyro.sample(f"obs_{i}", dist.Normal(mu, 1.0), obs=y[i])


def prior_from_data(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(y.mean(), 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)


def standardised_inside(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", normal(DIM))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal((x - x.mean(0)) @ w, 1.0), obs=y)


def random_walk(y: Tensor) -> None:
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("data", len(y) - 1):
        pyro.sample("obs", dist.Normal(y[:-1], sigma), obs=y[1:])


def fixed_size(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N):
        pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)


def linear_with_known_noise(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", normal(DIM))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(x @ w, 1.5), obs=y)


def own_subsample_closed_over() -> None:
    w = pyro.sample("w", normal(DIM))
    with pyro.plate("data", N, subsample_size=OWN) as index:
        pyro.sample("obs", dist.Normal(X[index] @ w, 1.5), obs=Y[index])


def closed_over_by_index() -> None:
    w = pyro.sample("w", normal(DIM))
    with pyro.plate("data", N) as index:
        pyro.sample("obs", dist.Normal(X[index] @ w, 1.5), obs=Y[index])


def closed_over_whole() -> None:
    w = pyro.sample("w", normal(DIM))
    with pyro.plate("data", N):
        pyro.sample("obs", dist.Normal(X @ w, 1.5), obs=Y)


def own_subsample(x: Tensor, y: Tensor | None = None) -> None:
    w = pyro.sample("w", normal(DIM))
    with pyro.plate("data", len(x), subsample_size=OWN) as index:
        pyro.sample("obs", dist.Normal(x[index] @ w, 1.5), obs=None if y is None else y[index])


def own_subsample_by_primitive(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", normal(DIM))
    with pyro.plate("data", len(x), subsample_size=OWN):
        x, y = pyro.subsample(x, event_dim=1), pyro.subsample(y, event_dim=0)
        pyro.sample("obs", dist.Normal(x @ w, 1.5), obs=y)


def own_subsample_of_groups(g: Tensor, y: Tensor, weight: Tensor, num_groups: int) -> None:
    with pyro.plate("groups", num_groups):
        effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y), subsample_size=OWN) as index, poutine.scale(scale=weight[index]):
        pyro.sample("obs", dist.Normal(effect[g[index]], 1.0), obs=y[index])


def groups_of_weighted_rows(g: Tensor, y: Tensor, weight: Tensor, num_groups: int) -> None:
    with pyro.plate("groups", num_groups):
        effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)), poutine.scale(scale=weight):
        pyro.sample("obs", dist.Normal(effect[g], 1.0), obs=y)


def own_subsample_schools() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("data", N, subsample_size=OWN) as index:
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("obs", dist.Normal(theta, WEIGHTS[index]), obs=Y[index])


def own_subsample_mixture(y: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((discrete_models.COMPONENTS,), 2.0)))
    means = pyro.sample("means", dist.Normal(0.0, 2.0).expand([discrete_models.COMPONENTS]).to_event(1))
    with pyro.plate("data", len(y), subsample_size=OWN) as index:
        z = pyro.sample("z", dist.Categorical(weights))
        mean = pyro.deterministic("mean", means[z])
        pyro.sample("obs", dist.Normal(mean, 0.7), obs=y[index])


def own_subsample_crossed() -> None:
    columns = pyro.plate("columns", DIM, dim=-1)
    with columns:
        level = pyro.sample("level", dist.Normal(0.0, 2.0))
    with pyro.plate("data", N, subsample_size=OWN, dim=-2) as index, columns:
        pyro.sample("obs", dist.Normal(level, 1.0), obs=MATRIX[index])


def crossed(y: Tensor) -> None:
    columns = pyro.plate("columns", y.shape[-1], dim=-1)
    with columns:
        level = pyro.sample("level", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y), dim=-2), columns:
        pyro.sample("obs", dist.Normal(level, 1.0), obs=y)


def crossed_rows_last(y: Tensor) -> None:
    with pyro.plate("columns", DIM, dim=-2) as columns:
        level = pyro.sample("level", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(y), dim=-1):
            pyro.sample("obs", dist.Normal(level * (1 + columns[:, None]), 1.0), obs=y.T)


def ratings(user: Tensor, item: Tensor, y: Tensor, num_users: int, num_items: int) -> None:
    """Every row indexes two sets of latent vectors."""
    with pyro.plate("users", num_users):
        taste = pyro.sample("taste", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("items", num_items):
        quality = pyro.sample("quality", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal((taste[user] * quality[item]).sum(-1), 1.0), obs=y)


NOTHING: dict[str, Any] = {}
CASES = [
    Case("linear", linear, {"x": X, "y": Y}),
    Case(
        "subsample argument", linear_by_index, {"x": X, "y": Y, "rows": torch.arange(N)}, {"size": N},
        declares_size=True,
    ),
    Case(
        "subsample, data in constants", linear_by_index_in_constants, {"rows": torch.arange(N)}, {"x": X, "y": Y},
        declares_size=True, arguments={"obs": None},
    ),
    Case("integer labels", logistic, {"x": X, "y": LABELS}),
    Case("boolean labels", logistic, {"x": X, "y": LABELS.bool()}),
    Case("NumPy data", logistic, {"x": X.numpy(), "y": LABELS.numpy().astype(np.uint8)}),
    Case("Categorical", multinomial_regression, {"x": X, "y": CLASS}),
    Case(
        "Multinomial", total_counts, {"y": torch.stack([COUNTS, 7 - COUNTS, 0 * COUNTS], -1)},
        vmaps=False, dims={"obs": ("data", None)},
    ),
    Case("negative binomial", negative_binomial, {"x": X, "y": COUNTS}),
    Case("Beta regression", beta_regression, {"x": X, "y": FRACTIONS}),
    Case("ordered logistic", ordered_logistic, {"x": X, "y": CLASS}, vmaps=False),
    Case("ImproperUniform", improper, {"y": Y}),
    Case(
        "groups", groups, {"g": GROUP, "y": Y}, {"num_groups": GROUPS},
        dims={"obs": ("data",), "effect": ("groups",), "rate": ("groups", None)},
    ),
    Case(
        "small integers for groups", groups, {"g": GROUP.numpy().astype(np.int8), "y": Y}, {"num_groups": GROUPS},
        dims={"obs": ("data",), "effect": ("groups",), "rate": ("groups", None)},
    ),
    Case(
        "nested plates", nested_groups, {"g": GROUP, "y": MATRIX}, {"num_groups": GROUPS},
        dims={"obs": ("data", "columns"), "level": ("items",), "effect": ("groups", "items")},
    ),
    Case(
        "several observed sites", several_observed, {"x": X, "y": Y, "count": COUNTS},
        outputs=("obs", "label", "count"), arguments={"obs": "y", "label": None, "count": "count"},
        dims={"obs": ("data",), "label": ("data",), "count": ("counts",)},
    ),
    Case("supports", supports, {"y": Y}),
    Case("LKJCholesky, multivariate normal", correlated, {"y": MATRIX}, dims={"obs": ("data", None)}),
    Case(
        "deterministic sites", deterministic_sites, {"x": X, "y": Y},
        dims={"obs": ("data",), "mean": ("data",)},
    ),
    Case("factors", factors, {"x": X, "y": Y}, dims={"obs": ("data",), "penalty": ("data", None)}),
    Case("only a factor", only_factor, {"x": X, "y": Y}, outputs=(), arguments={}, dims={"loss": ("data", None)}),
    Case("constant scale", tempered, {"y": Y}),
    Case("weights", weighted, {"y": Y, "weight": WEIGHTS}),
    Case(
        "weights, subsample argument", weighted_by_index, {"y": Y, "weight": WEIGHTS, "rows": torch.arange(N)},
        declares_size=True,
    ),
    Case("mask", masked, {"x": X, "y": Y, "known": Y > -0.5}),
    Case("masked distribution", masked_distribution, {"y": MATRIX, "known": MATRIX < 1}, dims={"obs": ("data", None)}),
    Case("no plate", without_plate, {"x": X, "y": Y}, dims={}),
    Case("no plate, scalar parameters", scalar_without_plate, {"y": Y}, dims={}),
    Case("rows as event axis", event_axis, {"x": X, "y": Y}, dims={}),
    Case("rows and columns as event axes", event_axes, {"y": MATRIX, "weight": WEIGHTS}, dims={}),
    Case(
        "weighted columns, rows as event axis", weighted_columns, {"y": MATRIX},
        {"weight": WEIGHTS[:DIM], "known": torch.tensor([True, False, True])},
        arguments={"obs": None}, dims={"obs": ("columns", None)},
    ),
    Case("multivariate rows", multivariate_rows, {"x": X, "y": MATRIX}, dims={"obs": ("data", None)}),
    Case("mixture", mixture, {"y": Y}, outputs=()),
    Case("mixture prior", mixture_prior, {"y": Y}),
    Case("vector of mixtures, positive mixture", mixture_priors, {"y": Y}),
    Case(
        "censored", survival, {"y": WEIGHTS, "seen": Y < 0.5},
        dims={"obs": ("data",), "censored": ("data", None)},
    ),
    Case("module", Network(), {"x": X, "y": Y}, dims={"obs": ("data",), "mean": ("data",)}),
    Case("callable object", Prior(), {"y": Y}),
    Case("PyroModule", RegressionWithPriors(), {"x": X, "y": Y}),
    Case(
        "own subsample, closed over", own_subsample_closed_over, {}, arguments={"obs": None},
        passed=(linear_with_known_noise, {"x": X, "y": Y}),
    ),
    Case(
        "closed over, by index", closed_over_by_index, {}, arguments={"obs": None},
        passed=(linear_with_known_noise, {"x": X, "y": Y}),
    ),
    Case(
        "closed over, whole", closed_over_whole, {}, minibatch=False, arguments={"obs": None},
        passed=(linear_with_known_noise, {"x": X, "y": Y}),
    ),
    Case(
        "own subsample", own_subsample, {"x": X, "y": Y}, passed=(linear_with_known_noise, {"x": X, "y": Y}),
    ),
    Case(
        "own subsample, pyro.subsample", own_subsample_by_primitive, {"x": X, "y": Y},
        passed=(linear_with_known_noise, {"x": X, "y": Y}),
    ),
    Case(
        "own subsample, groups and weights", own_subsample_of_groups, {"g": GROUP, "y": Y, "weight": WEIGHTS},
        {"num_groups": GROUPS}, dims={"obs": ("data",), "effect": ("groups",)},
        passed=(groups_of_weighted_rows, {"g": GROUP, "y": Y, "weight": WEIGHTS}),
    ),
    Case(
        "own subsample, crossed with columns", own_subsample_crossed, {}, arguments={"obs": None},
        dims={"obs": ("data", "columns"), "level": ("columns",)}, passed=(crossed, {"y": MATRIX}),
    ),
    Case(
        "own subsample, latents of rows", own_subsample_schools, {}, arguments={"obs": None}, local={"theta": 0},
        dims={"obs": ("data",), "theta": ("data",)}, passed=(local_models.schools, {"sigma": WEIGHTS, "y": Y}),
    ),
    Case(
        "own subsample, mixture", own_subsample_mixture, {"y": Y}, twin=discrete_models.mixture_by_hand,
        discrete=("z", "mean"), outputs=(), passed=(discrete_models.mixture, {"y": Y}),
    ),
    Case("crossed plates", crossed, {"y": MATRIX}, dims={"obs": ("data", "columns"), "level": ("columns",)}),
    Case(
        "crossed plates, rows last", crossed_rows_last, {"y": MATRIX}, arguments={"obs": None},
        dims={"obs": ("columns", "data"), "level": ("columns", None)},
    ),
    Case(
        "ratings", ratings, {"user": GROUP, "item": CLASS, "y": Y}, {"num_users": GROUPS, "num_items": CLASSES},
        dims={"obs": ("data",), "taste": ("users", None), "quality": ("items", None)},
    ),
    Case("observation that enters once", two_sided, {"x": X, "y": Y}, arguments={"obs": "y", "calibration": None}),
    Case("bounded by a latent site", bounded_data, {"y": FRACTIONS}),
    Case(
        "eight schools", local_models.schools, {"sigma": WEIGHTS, "y": Y}, local={"theta": 0},
        dims={"obs": ("data",), "theta": ("data",)},
    ),
    Case(
        "true covariate", local_models.true_covariate, {"x": WEIGHTS, "y": Y}, local={"dose": 0},
        outputs=("measured", "obs"), arguments={"measured": "x", "obs": "y"},
        dims=dict.fromkeys(("dose", "effect", "measured", "obs"), ("data",)),
    ),
    Case(
        "shares", local_models.shares, {"y": TABLE}, local={"share": 0}, vmaps=False,
        dims={"obs": ("data", None), "share": ("data", None)},
    ),
    Case(
        "crossed plates, local", local_models.crossed, {"y": MATRIX}, local={"factor": 0, "theta": 1},
        arguments={"obs": None},
        dims={
            "obs": ("columns", "data"), "offset": ("columns", None), "theta": ("columns", "data"),
            "factor": ("data", None),
        },
    ),
    Case(
        "local given discrete", local_models.given_discrete, {"y": Y}, local={"theta": 0},
        twin=local_models.given_discrete_by_hand, discrete=("z",), dims={"obs": ("data",), "theta": ("data",)},
    ),
    Case(
        "discrete", discrete_models.mixture, {"y": Y}, twin=discrete_models.mixture_by_hand, discrete=("z", "mean"),
        outputs=(),
    ),
    Case(
        "discrete by column", discrete_models.per_column, {"y": MATRIX}, twin=discrete_models.per_column_by_hand,
        discrete=("outlier",), outputs=(), dims={"obs": ("data", "columns")},
    ),
    Case(
        "discrete behind two observations", discrete_models.two_of_a_row, {"y": MATRIX, "count": COUNTS},
        twin=discrete_models.two_of_a_row_by_hand, discrete=("z",), outputs=(), arguments={"obs": "y", "count": None},
        dims={"obs": ("data", "columns"), "count": ("data", None)},
    ),
    Case(
        "cause and effect", discrete_models.cause_and_effect, {"x": X, "y": Y},
        twin=discrete_models.cause_and_effect_by_hand, discrete=("cause", "effect"), outputs=(),
    ),
    Case(
        "hidden Markov", discrete_models.hidden_markov, {"y": SERIES}, twin=discrete_models.hidden_markov_by_hand,
        discrete=tuple(f"state_{t}" for t in range(4)), outputs=(), arguments={},
        dims={f"obs_{t}": ("data",) for t in range(4)},
    ),
    Case(
        "one hot", discrete_models.one_hot, {"y": Y}, twin=discrete_models.one_hot_by_hand, discrete=("z",),
        outputs=(),
    ),
    Case(
        "discrete outside the plate", discrete_models.one_for_all, {"y": Y}, twin=discrete_models.one_for_all_by_hand,
        discrete=("which", "z"), minibatch=False, outputs=(),
    ),
    Case(
        "partly observed", partly_observed, {"x": X, "y": Y, "known": Y < 0.5}, local={"obs_unobserved": 0},
        outputs=("obs_observed",), arguments={"obs_observed": "y"},
        dims={"obs_observed": ("data",), "obs_unobserved": ("data",), "obs": ("data",)},
    ),
    Case(
        "local given discrete outside the plate", local_models.given_one_for_all, {"y": Y}, local={"theta": 0},
        twin=local_models.given_one_for_all_by_hand, discrete=("z",), minibatch=False,
        dims={"obs": ("data",), "theta": ("data",)},
    ),
    Case("local outside the plate", local_models.outside_the_plate, {"y": Y}, minibatch=False, outputs=(), dims={}),
    Case("Gaussian process", gaussian_process, {"x": X, "y": Y}, minibatch=False, outputs=(), dims={}),
    Case("factor over rows", factor_over_rows, {"x": X, "y": Y}, minibatch=False),
    Case("sequential plate", sequential, {"y": Y}, minibatch=False, outputs=(), arguments={}, dims={}),
    Case("prior from data", prior_from_data, {"y": Y}, minibatch=False),
    Case("standardised inside", standardised_inside, {"x": X, "y": Y}, minibatch=False),
    Case("random walk", random_walk, {"y": Y}, minibatch=False, outputs=(), arguments={"obs": None}),
    Case("plate of fixed size", fixed_size, {"y": Y}, minibatch=False),
    Case("params", params, {"x": X, "y": Y}),
    Case("PyroModule with parameters", LastLayer(), {"x": X, "y": Y}),
    Case("pyro.module", Registered(), {"x": X, "y": Y}),
    Case("ps.bayesian", network_with_priors(), {"x": X, "y": Y}),
]  # fmt: skip
assert len({case.name for case in CASES}) == len(CASES)
MINIBATCHED = [case for case in CASES if case.minibatch]
WHOLE = [case for case in CASES if not case.minibatch]
