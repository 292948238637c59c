"""What cannot be done is refused where it enters, naming the culprit, what was got, what is wanted, and a remedy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from model_cases import CLASS, GROUP, LABELS, WHOLE, Case, N, X, Y, linear, linear_by_index, logistic, normal
from pyro import poutine
from torch import Tensor

from pyro_scale.compile import compile_model
from pyro_scale.errors import (
    ArgumentError,
    DataError,
    DiscreteSiteError,
    MinibatchError,
    ModelError,
    PyroScaleError,
    StartError,
)
from pyro_scale.support import BLOCK_ROWS

BATCH = 6
Model = Callable[..., Any]


@dataclass(frozen=True)
class Refusal:
    """A wrong call.

    Attributes:
        name: of the test's parameter.
        model, data, options: the call; `options` are keyword arguments of `compile_model`.
        error: type of the exception.
        words: what the message must hold: the name of the culprit, got, wanted, the remedy.
        full_batch: whether it is refused with and without batch_size.
    """

    name: str
    model: Model
    data: Any
    error: type[PyroScaleError]
    words: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    full_batch: bool = True


def discrete_by_group(g: Tensor, y: Tensor) -> None:
    means = pyro.sample("means", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("groups", 4):
        z = pyro.sample("z", dist.Bernoulli(0.3)).long()
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(means[z.expand(*z.shape[:-1], 4)[..., g]], 1.0), obs=y)


def branching_on_discrete(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    z = pyro.sample("z", dist.Bernoulli(0.3))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(mu if z else -mu, 1.0), obs=y)


def plain(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)


def with_site(name: str, fn: Callable[[], Any]) -> Model:
    """`plain` with one more latent site."""

    def model(y: Tensor) -> None:
        pyro.sample(name, fn())
        plain(y)

    return model


def no_latent(y: Tensor) -> None:
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(0.0, 1.0), obs=y)


def no_observed(x: Tensor) -> None:
    pyro.sample("w", normal(3))


def local_discrete(y: Tensor) -> None:
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Categorical(torch.ones(3)))
        pyro.sample("obs", dist.Normal(z.to(y), 1.0), obs=y)


def many_coins(y: Tensor) -> None:
    total = pyro.sample("mu", dist.Normal(0.0, 1.0))
    for i in range(17):
        total = total + pyro.sample(f"coin_{i}", dist.Bernoulli(0.5))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(total, 1.0), obs=y)


def discrete_bound(y: Tensor) -> None:
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        theta = pyro.sample("theta", dist.Uniform(-1.0, 1.0 + z))
        pyro.sample("obs", dist.Normal(theta, 1.0), obs=y)


def discrete_without_plate(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    z = pyro.sample("z", dist.Bernoulli(0.5))
    pyro.sample("obs", dist.Normal(mu + z, 1.0), obs=y)


def closed_over(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N):
        pyro.sample("obs", dist.Normal(mu, 1.0), obs=Y)


def closed_over_in_part(x: Tensor) -> None:
    w = pyro.sample("w", normal(3))
    with pyro.plate("data", N):
        pyro.sample("obs", dist.Normal(x @ w, 1.0), obs=Y)


def branching(y: Tensor) -> None:
    """Alternates, as would a model that counts its calls; branches on latent sites come and go by chance."""
    branching.calls = getattr(branching, "calls", 0) + 1  # type: ignore[attr-defined]
    if branching.calls % 2:  # type: ignore[attr-defined]
        pyro.sample("sometimes", dist.Normal(0.0, 1.0))
    plain(y)


class Dropout(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, x: Tensor, y: Tensor) -> None:
        w = pyro.sample("w", normal(3))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(self.dropout(x) @ w, 1.0), obs=y)


def param_of(*value: Any, **options: Any) -> Model:
    def model(x: Tensor, y: Tensor) -> None:
        sigma = pyro.param("sigma", *value, **options)
        w = pyro.sample("w", normal(3))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(x @ w, sigma), obs=y)

    return model


class NotBayesian(pyro.nn.PyroModule):
    """Every parameter is ordinary: the priors were forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = pyro.nn.PyroModule[torch.nn.Linear](3, 1, dtype=torch.float64)

    def forward(self, x: Tensor, y: Tensor) -> None:
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)


def fixed_network() -> Model:
    network = torch.nn.Linear(3, 3)

    def model(x: Tensor, y: Tensor) -> None:
        w = pyro.sample("w", normal(3))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(network(x) @ w, 1.0), obs=y)

    return model


def own_subsample(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N, subsample_size=4) as rows:
        pyro.sample("obs", dist.Normal(mu, 1.0), obs=y[rows])


def own_subsample_of_groups(g: Tensor, y: Tensor) -> None:
    with pyro.plate("groups", 40, subsample_size=4):
        effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(effect.mean() + g, 1.0), obs=y)


def own_subsample_twice() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with (
        pyro.plate("first", N, subsample_size=6, dim=-2) as i,
        pyro.plate("second", 3, subsample_size=2, dim=-1) as j,
    ):
        pyro.sample("obs", dist.Normal(mu, 1.0), obs=X[i][:, j])


def own_subsample_of_an_argument_and_a_constant(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y), subsample_size=6) as index:
        pyro.sample("obs", dist.Normal(mu, 1.0), obs=y[index])
    with pyro.plate("others", N, subsample_size=6) as index:
        pyro.sample("other", dist.Normal(mu, 1.0), obs=Y[index])


def own_subsample_unused(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y), subsample_size=6):
        pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)


def own_subsample_elsewhere(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y), subsample_size=6):
        pyro.sample("obs", dist.Normal(mu, 1.0), obs=y[:6])


def own_subsample_of_a_joint_event() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N, subsample_size=6) as index:
        pyro.sample("obs", dist.Normal(mu, 1.0), obs=Y[index])
        pyro.factor("spread", -(Y[index] - mu).square().sum())
    pyro.sample("total", dist.MultivariateNormal(mu.expand(6), torch.eye(6)), obs=Y[index])


def closed_over_without_plate() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("obs", dist.Normal(mu, 1.0), obs=Y)


def plate_that_nothing_follows() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N):
        pass
    pyro.sample("obs", dist.Normal(mu, 1.0), obs=Y)


def closed_over_in_a_loop() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    for i in pyro.plate("data", N, subsample_size=6):
        pyro.sample(f"obs_{i}", dist.Normal(mu, 1.0), obs=Y[i])


def closed_over_in_a_plate_of_another_size() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N + 1):
        pyro.sample("obs", dist.Normal(mu * X[:, 0], 1.0), obs=Y)


def closed_over_beyond_the_end() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N + 1) as index:
        pyro.sample("obs", dist.Normal(mu, 1.0), obs=Y[index])


def broken_before_its_plate() -> None:
    raise RuntimeError("no such file")


def centred_in_place(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", normal(3))
    x -= x.mean(0)
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(x @ w, 1.0), obs=y)


def groups_from_rows(g: Tensor, y: Tensor) -> None:
    with pyro.plate("groups", int(g.max()) + 1):
        effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(effect[g], 1.0), obs=y)


def scaled_by_hand(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with poutine.scale(scale=N / len(y)), pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)


def scaled_prior(y: Tensor) -> None:
    with poutine.scale(scale=len(y) / N):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)


def column_against_row(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", normal(3, 1))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(x @ w, 1.0), obs=y)


def column_observed(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", normal(3))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(x @ w, 1.0), obs=y[:, None])


class Normalised(torch.nn.Module):
    """Batch normalisation left in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.normalise = torch.nn.BatchNorm1d(3).double()

    def forward(self, x: Tensor, y: Tensor) -> None:
        w = pyro.sample("w", normal(3))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(self.normalise(x) @ w, 1.0), obs=y)


def running_total(y: Tensor) -> None:
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(y.cumsum(0) - y, sigma), obs=y)


def classes(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", normal(3, 3))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Categorical(logits=x @ w), obs=y)


def two_row_axes(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    distance = (y - y[:, None]).abs()
    with pyro.plate("data", len(y), dim=-1), pyro.plate("others", len(y), dim=-2):
        pyro.sample("obs", dist.Normal(mu, 1.0), obs=distance)


def log_normal(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(mu, 1.0), obs=y.log())


def numpy_inside(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", normal(3))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(torch.as_tensor(x.numpy() @ w.detach().numpy()), 1.0), obs=y)


def plate_of_100(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", normal(3))
    with pyro.plate("data", 100):
        pyro.sample("obs", dist.Normal(x @ w, 1.0), obs=y)


def linear_in_double(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", normal(3))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(x @ w, 1.0), obs=y)


def by_position(x: Tensor, /, y: Tensor) -> None:
    linear(x, y)


def scaled_groups(g: Tensor, y: Tensor) -> None:
    with pyro.plate("groups", 40, subsample=torch.arange(4)):
        effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(effect[g], 1.0), obs=y)


def with_value(column: Tensor, row: int, value: float) -> Tensor:
    changed = column.clone()
    changed[row] = value
    return changed


XY = {"x": X, "y": Y}
REFUSALS = [
    # sites
    Refusal("no latent site", no_latent, Y, ModelError, ("no latent site", "pyro.sample without obs")),
    Refusal("no observed site", no_observed, X, ModelError, ("no observed site", "obs=y")),
    Refusal("forgotten y", linear, {"x": X}, ModelError, ("no observed site", "'y' is None", "data")),
    Refusal(
        "forgotten labels",
        lambda x, y=None: logistic(x, y),
        {"x": X},
        ModelError,
        ("no observed site", "'y' is None", "data"),
    ),
    Refusal(
        "Poisson",
        with_site("count", lambda: dist.Poisson(3.0)),
        Y,
        DiscreteSiteError,
        ("'count'", "Poisson", "cannot be listed", "finitely many", "observe it"),
    ),
    Refusal(
        "multinomial",
        with_site("counts", lambda: dist.Multinomial(3, torch.ones(3))),
        Y,
        DiscreteSiteError,
        ("'counts'", "Multinomial", "cannot be listed"),
    ),
    Refusal(
        "too many combinations",
        many_coins,
        Y,
        DiscreteSiteError,
        ("'coin_16'", "131072 combinations", "'coin_0' 2", "at most 65536", "plate", "pyro.markov"),
    ),
    Refusal(
        "too many values",
        with_site("count", lambda: dist.Binomial(10**6, 0.5)),
        Y,
        DiscreteSiteError,
        ("'count'", "1000001 combinations"),
    ),
    Refusal(
        "support by a discrete site",
        discrete_bound,
        Y,
        DiscreteSiteError,
        ("support of site 'theta'", "discrete", "fixed support"),
    ),
    Refusal(
        "discrete beside an axis without plate",
        discrete_without_plate,
        Y,
        ModelError,
        ("'obs'", "in no plate", "to_event"),
    ),
    Refusal(
        "vector of Bernoullis",
        with_site("coins", lambda: dist.Bernoulli(0.5).expand([3]).to_event(1)),
        Y,
        DiscreteSiteError,
        ("'coins'", "vector of Bernoulli", "plate"),
    ),
    Refusal("only discrete sites", local_discrete, Y, ModelError, ("'z'", "summed out", "nothing is left")),
    Refusal("sites come and go", branching, Y, ModelError, ("'sometimes'", "different sites", "mask")),
    Refusal("dropout", Dropout(), XY, ModelError, ("'obs'", "random", "eval()")),
    Refusal(
        "whole numbers as covariates",
        linear_in_double,
        {"x": X.round().long(), "y": Y},
        ModelError,
        ("mixes floating types", "'x' holds covariates, pass them as floats (x.double())"),
    ),
    Refusal(
        "module without priors", NotBayesian(), XY, ModelError,
        ("no latent site", "'linear.weight', 'linear.bias' have no prior", "PyroSample(prior)"),
    ),
    Refusal(
        "param without a value", param_of(), XY, ModelError, ("'sigma'", "without a value"),
    ),
    Refusal(
        "param outside its constraint", param_of(torch.tensor(-1.0), constraint=dist.constraints.positive), XY,
        ModelError, ("'sigma'", "outside its constraint GreaterThan(lower_bound=0.0)"),
    ),
    Refusal(
        "network of another type", fixed_network(), XY, ModelError, ("torch.float64", "dtype=torch.float32", "double()")
    ),
    # plates
    Refusal("follows no argument", closed_over, X, MinibatchError, ("'obs'", "'data'", "24", "plate('data', len(y))")),
    Refusal(
        "observations closed over", closed_over_in_part, X, MinibatchError, ("runs on", "len(x)", "data"), {}, False
    ),
    Refusal(
        "batch_size and subsample_size", own_subsample, Y, ArgumentError,
        ("batch_size is 5", "'data'", "4 of 24", "None or 4", "take subsample_size out"), {"batch_size": 5},
    ),
    Refusal(
        "subsample_size of groups", own_subsample_of_groups, {"g": GROUP, "y": Y}, MinibatchError,
        ("'groups'", "4 of 40", "24 rows", "Leave subsample_size out"),
    ),
    Refusal(
        "crossed subsampling", own_subsample_twice, {}, MinibatchError,
        ("'first', 'second'", "Leave subsample_size out of all but"),
    ),
    Refusal(
        "subsample_size twice", own_subsample_of_an_argument_and_a_constant, Y, MinibatchError,
        ("'data', 'others'", "Leave subsample_size out of all but"),
    ),
    Refusal(
        "subsample_size, indices unused", own_subsample_unused, Y, MinibatchError,
        ("'data'", "all 24 rows", "as idx", "obs=y[idx]"),
    ),
    Refusal(
        "subsample_size, other indices", own_subsample_elsewhere, Y, MinibatchError,
        ("6 rows but not on 5", "'data'", "as idx", "obs=y[idx]", "Without the subsample_size of plate 'data'"),
    ),
    Refusal(
        "subsample_size, joint event", own_subsample_of_a_joint_event, {}, MinibatchError,
        ("6 rows but not on 5", "as idx"),
    ),
    Refusal("closed over, no plate", closed_over_without_plate, {}, DataError, ("no plate", "pyro.plate('data'")),
    Refusal("closed over, None", closed_over_without_plate, None, DataError, ("no plate", "data={'x': x, 'y': y}")),
    Refusal(
        "closed over, nothing in the plate", plate_that_nothing_follows, {}, MinibatchError,
        ("'obs' (in no plate) does not follow plate 'data'", "24 indices", "obs=y[idx]"),
    ),
    Refusal(
        "closed over, sequential", closed_over_in_a_loop, {}, MinibatchError, ("'data'", "sequential", "vectorised"),
    ),
    Refusal(
        "closed over, another size of plate", closed_over_in_a_plate_of_another_size, {}, ModelError,
        ("'data', 25)", "as idx", "obs=y[idx]"),
    ),
    Refusal("closed over, beyond the end", closed_over_beyond_the_end, {}, ModelError, ("'data'", "25", "IndexError")),
    Refusal("fails before any plate", broken_before_its_plate, {}, DataError, ("no plate", "no such file")),
    Refusal("changes its argument", centred_in_place, XY, ModelError, ("'x' in place", "x = x - x.mean(0)")),
    Refusal(
        "another N in the plate",
        linear_by_index,
        {**XY, "rows": torch.arange(N)},
        ModelError,
        ("'data'", "1000", "24", "number of rows"),
        {"constants": {"size": 1000}},
    ),
    Refusal("scaled by hand", scaled_by_hand, Y, MinibatchError, ("'obs'", "poutine.scale", "remove"), {}, False),
    Refusal("scaled prior", scaled_prior, Y, MinibatchError, ("'mu'", "prior"), {}, False),
    Refusal(
        "(n, 1) under (n,)", column_against_row, XY, ModelError,
        ("'obs'", "every row against every other", "squeeze(-1)"),
    ),
    Refusal("(n,) under (n, 1)", column_observed, XY, ModelError, ("'obs'", "squeeze(-1)")),
    Refusal(
        "number of groups from the rows",
        groups_from_rows,
        {"g": torch.arange(N), "y": Y},
        MinibatchError,
        ("'effect'", "constants"),
        {},
        False,
    ),
    Refusal("batch normalisation", Normalised(), XY, ModelError, ("changes a tensor", "module.eval()")),
    Refusal("running total", running_total, Y, MinibatchError, ("'obs'", "order", "batch_size=None"), {}, False),
    Refusal("two axes", two_row_axes, Y, MinibatchError, ("'obs'", "2 axes"), {}, False),
    # data
    Refusal("empty dict", linear, {}, DataError, ("empty", "data={'x': x, 'y': y}")),
    Refusal("None", linear, None, DataError, ("empty", "data={'x': x, 'y': y}")),
    Refusal("empty tuple", linear, (), DataError, ("empty",)),
    Refusal("None among the rows", linear, {"x": X, "y": None}, DataError, ("data['y'] is None: leave it out",)),
    Refusal("no rows", linear, {"x": X[:0], "y": Y[:0]}, DataError, ("data['x']", "0 rows", "at least 1")),
    Refusal("ragged", linear, {"x": X, "y": Y[:-1]}, DataError, ("data['y']", "23", "24", "constants")),
    Refusal("scalar", linear, {"x": X, "y": torch.tensor(1.0)}, DataError, ("data['y']", "scalar", "constants")),
    Refusal("list", linear, {"x": X, "y": Y.tolist()}, DataError, ("data['y']", "list", "tensor or array")),
    Refusal("list of arrays", linear, [X, Y], DataError, ("data['x']", "list", "tensor or array")),
    Refusal("string", linear, {"x": X, "y": "y"}, DataError, ("data['y']", "str", "tensor or array")),
    Refusal("strings", linear, {"x": X, "y": np.array(["a"] * N)}, DataError, ("data['y']", "<U1", "cat.codes")),
    Refusal("objects", linear, {"x": X, "y": np.array([None] * N)}, DataError, ("data['y']", "object", "floating")),
    Refusal("dates", linear, {"x": X, "y": np.zeros(N, "datetime64[s]")}, DataError, ("data['y']", "datetime64")),
    Refusal("complex", linear, {"x": X, "y": Y + 0j}, DataError, ("data['y']", "complex", "dense and floating")),
    Refusal("sparse", linear, {"x": X.to_sparse(), "y": Y}, DataError, ("data['x']", "sparse", "dense")),
    Refusal(
        "masked array",
        linear,
        {"x": X, "y": np.ma.masked_greater(Y.numpy(), 0.5)},
        DataError,
        ("data['y']", "masked", "obs_mask"),
    ),
    Refusal(
        "NaN",
        linear,
        {"x": X, "y": with_value(Y, 17, float("nan"))},
        DataError,
        ("data['y']", "NaN", "row 17", "mask(...) may hide a row"),
    ),
    Refusal(
        "infinity",
        linear,
        {"x": with_value(X, 5, float("-inf")), "y": Y},
        DataError,
        ("data['x']", "infinity", "row 5", "1 of 24"),
    ),
    Refusal("unknown argument", linear, {"x": X, "z": Y}, ArgumentError, ("'z'", "x, y", "Rename")),
    Refusal("missing argument", logistic, {"x": X}, ArgumentError, ("'y'", "missing", "constants")),
    Refusal(
        "unknown constant", linear, XY, ArgumentError, ("'tau'", "x, y", "Rename"), {"constants": {"tau": 1.0}}
    ),
    Refusal(
        "data and constants", linear, XY, ArgumentError, ("'x'", "both", "one of them"), {"constants": {"x": X}}
    ),
    Refusal("too many arrays", linear, (X, Y, Y), ArgumentError, ("3 arrays", "2 arguments", "(x, y)", "dict")),
    Refusal(
        "rows among the constants",
        linear,
        {"x": X},
        MinibatchError,
        ("runs on", "per-row arrays in data"),
        {"constants": {"y": Y}},
        False,
    ),
    Refusal("positional only", by_position, XY, ArgumentError, ("'x'", "positional only", "'/'", "by_position")),
    Refusal("no model", 3.0, XY, ArgumentError, ("float", "callable")),  # type: ignore[arg-type]
    Refusal("a class", NotBayesian, XY, ArgumentError, ("the class NotBayesian", "callable")),
    Refusal("constants in a list", linear, XY, ArgumentError, ("list", "dict"), {"constants": [1.0]}),
    Refusal(
        "one-hot labels", logistic, {"x": X, "y": torch.eye(4)[GROUP]}, ModelError,
        ("'obs'", "Bernoulli", "same shape"),
    ),
    Refusal(
        "discrete by group", discrete_by_group, {"g": GROUP, "y": Y}, ModelError,
        ("'obs'", "discrete site 'z'", "plate 'groups'", "not in that plate", "sum 'z' out"),
    ),
    Refusal(
        "branch on a discrete site", branching_on_discrete, Y, DiscreteSiteError,
        ("discrete site 'z'", "one value", "all values at once", "ambiguous", "torch.where"),
    ),
    Refusal("NumPy inside", numpy_inside, XY, ModelError, ("no gradient", "torch operations")),
    Refusal(
        "Delta", with_site("one", lambda: dist.Delta(torch.tensor(1.0))), Y, ModelError,
        ("'one'", "Delta", "pyro.deterministic('one', value)"),
    ),
    Refusal(
        "another size of plate", plate_of_100, XY, ModelError, ("'data'", "100", "rows of data", "len(x)"),
    ),
    Refusal("logarithm of 0", log_normal, Y.clamp(min=0), DataError, ("'obs'", "-inf", "Real()", "Normal")),
    Refusal(
        "a plate over groups that scales", scaled_groups, {"g": GROUP, "y": Y}, ModelError,
        ("'groups'", "40", "4", "24"),
    ),
    # options
    *(
        Refusal(f"batch_size={value!r}", linear, XY, ArgumentError, (repr(value), "1 to the 24"), {"batch_size": value})
        for value in (25, 0, -1, True, False, 6.0, 0.5, "6", torch.tensor(6))
    ),
    Refusal("unknown device", linear, XY, ArgumentError, ("'gpu'", "cpu"), {"device": "gpu"}),
    Refusal("device without values", linear, XY, ArgumentError, ("'meta'", "'cpu', 'cuda'"), {"device": "meta"}),
    Refusal("data without values", linear, X.to("meta"), ArgumentError, ("type='meta'", "'cpu', 'cuda'")),
    Refusal("integer dtype", linear, XY, ArgumentError, ("torch.int64", "floating"), {"dtype": torch.int64}),
    Refusal("dtype as string", linear, XY, ArgumentError, ("'float32'", "torch.float64"), {"dtype": "float32"}),
    # values
    Refusal(
        "label 2", logistic, {"x": X, "y": with_value(LABELS, 17, 2)}, DataError,
        ("'obs'", "2.0", "[17]", "Boolean()", "Bernoulli"),
    ),
    Refusal(
        "negative label", classes, {"x": X, "y": with_value(CLASS, 3, -1)}, DataError,
        ("'obs'", "-1", "[3]", "Categorical"),
    ),
    Refusal(
        "labels from 1", classes, {"x": X, "y": CLASS.clamp(min=1) + 1}, DataError, ("'obs'", "3", "Categorical"),
    ),
]  # fmt: skip
assert len({refusal.name for refusal in REFUSALS}) == len(REFUSALS)


def assert_says(error: BaseException, words: tuple[str, ...]) -> None:
    message = str(error)
    for word in words:
        assert word in message
    assert message.endswith(".")


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.name)
def test_minibatches_are_refused(refusal: Refusal) -> None:
    with pytest.raises(refusal.error) as caught:
        compile_model(refusal.model, refusal.data, **{"batch_size": BATCH, **refusal.options})
    print(caught.value)
    assert type(caught.value) is refusal.error
    assert_says(caught.value, refusal.words)


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.name)
def test_full_batch_is_refused_or_allowed(refusal: Refusal) -> None:
    if not refusal.full_batch:
        compiled = compile_model(refusal.model, refusal.data, **refusal.options)
        compiled.log_posterior(compiled.initial_position(0), compiled.batch())
        with pytest.raises(MinibatchError) as caught:
            compiled.batch(torch.arange(BATCH))
    else:
        with pytest.raises(refusal.error) as caught:  # type: ignore[assignment]
            compile_model(refusal.model, refusal.data, **{"batch_size": None, **refusal.options})
        assert_says(caught.value, refusal.words)


# Models for full batch only: what test_compile holds to be Pyro's own density there is refused here

REMEDIES = {
    "local outside the plate": ("'theta'", "a latent value a row outside the plate", "in the plate", "constants"),
    "local given discrete outside the plate": ("'z'", "log of a sum", "'theta'", "in the plate", "batch_size=None"),
    "discrete outside the plate": ("'which'", "log of a sum", "'obs'", "in the plate", "batch_size=None"),
    "Gaussian process": ("'obs'", "joint event", "plate"),
    "factor over rows": ("'loss'", "factor", "plate"),
    "sequential plate": ("'data'", "sequential", "vectorised"),
    "prior from data": ("'mu'", "prior", "constants"),
    "standardised inside": ("'obs'", "other rows", "x.mean(0)"),
    "random walk": ("'obs'", "joint event", "batch_size=None"),
    "plate of fixed size": ("runs on", "len(x)"),
    "closed over, whole": ("runs on", "'data'", "as idx", "obs=y[idx]"),
}


@pytest.mark.parametrize("case", WHOLE, ids=lambda case: case.name)
@pytest.mark.parametrize("batch_size", [2, 5, 23])
def test_minibatches_of_whole_models_are_refused(case: Case, batch_size: int) -> None:
    with pytest.raises(MinibatchError) as caught:
        compile_model(case.model, case.data, constants=case.constants, batch_size=batch_size)
    assert_says(caught.value, REMEDIES[case.name])


@pytest.mark.parametrize("case", WHOLE, ids=lambda case: case.name)
def test_batches_of_whole_models_are_refused(case: Case) -> None:
    compiled = compile_model(case.model, case.data, constants=case.constants)
    assert compiled.batch().scale == compiled.batch(torch.arange(N)).scale == 1.0
    for indices in (torch.arange(BATCH), torch.arange(N).flip(0), torch.zeros(N, dtype=torch.long)):
        with pytest.raises(MinibatchError) as caught:
            compiled.batch(indices)
        assert_says(caught.value, REMEDIES[case.name])


# Batches, positions and values


@pytest.mark.parametrize(
    ("indices", "words"),
    [
        (torch.ones(N, dtype=torch.bool), ("torch.bool", "nonzero")),
        (torch.zeros(0, dtype=torch.long), ("(0,)", "at least one")),
        (torch.tensor(3), ("()", "(n,)")),
        (torch.zeros(3), ("torch.float32", "whole numbers")),
        (torch.tensor([0, N]), (f"from 0 to {N};", f"rows are 0 to {N - 1}")),
        (torch.tensor([[3, 5], [-1, 2]]), ("from -1 to 5", f"rows are 0 to {N - 1}")),
        (slice(0, 5), ("slice", "torch.arange")),
        ("all", ("str", "torch.arange")),
    ],
    ids=["mask", "none", "scalar", "floating", "beyond the last", "negative", "slice", "string"],
)
def test_indices_are_refused(indices: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(ArgumentError) as caught:
        compile_model(linear, XY, batch_size=BATCH).batch(indices)
    for word in words:
        assert word in str(caught.value)


def test_a_value_of_another_shape_is_refused() -> None:
    compiled = compile_model(linear, XY, batch_size=BATCH)
    values = compiled.constrain(compiled.initial_position(0))
    with pytest.raises(ArgumentError, match=r"'w' has shape \(2,\); the site has shape \(3,\)"):
        compiled.unconstrain({**values, "w": torch.zeros(2)})
    with pytest.raises(ArgumentError, match=r"lack the latent site 'sigma'; got 'w', 'b'"):
        compiled.unconstrain({"w": values["w"], "b": values["b"]})
    outside = compiled.unconstrain({**values, "sigma": torch.tensor(-1.0)})
    assert outside["sigma"].isnan()


def test_a_position_of_another_shape_is_refused() -> None:
    compiled = compile_model(linear, XY, batch_size=BATCH)
    position = compiled.initial_position(0)
    with pytest.raises(ModelError, match=r"'b' has shape \(2,\), but the model draws it in shape \(\)"):
        compiled.log_posterior({**position, "b": torch.zeros(2, dtype=torch.float64)}, compiled.batch())


def test_a_site_that_appears_later_is_refused() -> None:
    """A branch that the first runs do not take."""

    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        if mu > 3:
            pyro.sample("beyond", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))
        with pyro.plate("data", len(y)):
            pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)

    compiled = compile_model(model, Y, batch_size=BATCH)
    compiled.log_posterior({"mu": torch.tensor(0.0, dtype=torch.float64)}, compiled.batch())
    with pytest.raises(ModelError, match="'beyond' came or went"):
        compiled.log_posterior({"mu": torch.tensor(4.0, dtype=torch.float64)}, compiled.batch())


def test_a_number_of_groups_that_most_batches_agree_on_is_refused_later() -> None:
    data = {"g": GROUP, "y": Y}
    compiled = compile_model(groups_from_rows, data)
    compiled.log_posterior(compiled.initial_position(0), compiled.batch())
    with pytest.raises((ModelError, MinibatchError), match="'effect'"):
        compiled.log_posterior(compiled.initial_position(0), compiled.batch((GROUP == 0).nonzero()[:, 0]))


# Starts


def test_no_start_is_refused() -> None:
    def model(y: Tensor) -> None:
        bound = pyro.sample("bound", dist.Uniform(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("obs", dist.Uniform(0.0, bound), obs=y)

    compiled = compile_model(model, Y.abs() + 2)
    with pytest.raises(StartError) as caught:
        compiled.initial_position(0)
    assert_says(caught.value, ("'obs'", "-inf", "100 attempts", "prior allows the data"))


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("obs", dist.Normal((mu * 0).sqrt(), 1.0), obs=y)

    compiled = compile_model(model, Y)
    with pytest.raises(StartError, match="gradient is not finite at 'mu'"):
        compiled.initial_position(0)


def test_data_are_not_blamed_for_a_support_that_follows_a_latent_site() -> None:
    """No start was needed: whether 5 lies in (0, bound) is for the posterior to say."""

    def model(y: Tensor) -> None:
        bound = pyro.sample("bound", dist.Pareto(1.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("obs", dist.Uniform(0.0, bound), obs=y)

    compiled = compile_model(model, Y.sigmoid() * 5, batch_size=BATCH)
    assert compiled.num_data == N


def test_a_start_is_sought_where_a_matrix_is_positive_definite() -> None:
    def model(y: Tensor) -> None:
        rho = pyro.sample("rho", dist.Normal(0.0, 1.0))
        covariance = torch.eye(2) + rho * (1 - torch.eye(2))
        with pyro.plate("data", len(y)):
            pyro.sample("obs", dist.MultivariateNormal(torch.zeros(2), covariance), obs=y)

    compiled = compile_model(model, X[:, :2], batch_size=BATCH)
    for seed in range(10):
        assert compiled.initial_position(seed)["rho"].abs() < 1


def test_large_covariates_do_not_stop_the_first_run() -> None:
    """At most random weights some rate is 0 or infinite, which validation refuses."""

    def model(x: Tensor, y: Tensor) -> None:
        w = pyro.sample("w", normal(3))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Gamma(2.0, (x @ w).exp()), obs=y)

    assert compile_model(model, {"x": 300 * X, "y": Y.exp()}, batch_size=2)


# Devices


def test_absent_device_is_refused() -> None:
    absent = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(ArgumentError, match=f"device is '{absent}', which cannot be used here: .*\\. Try device='cpu'"):
        compile_model(linear, XY, device=absent)


# Supports are checked on all rows

LARGE = 2 * BLOCK_ROWS + 100


@pytest.mark.parametrize("row", [0, BLOCK_ROWS - 1, BLOCK_ROWS, LARGE - 1])
@pytest.mark.parametrize("batch_size", [None, 10, BLOCK_ROWS + 50])
def test_a_bad_label_is_found_wherever_it_is(row: int, batch_size: int | None) -> None:
    labels = with_value(torch.zeros(LARGE, dtype=torch.long), row, 3)
    data = {"x": torch.zeros(LARGE, 3), "y": labels}
    with pytest.raises(DataError, match=rf"'obs' observes 3.* at index \[{row}\].*Categorical"):
        compile_model(classes, data, batch_size=batch_size)


def test_a_bad_entry_of_a_matrix_is_found_with_its_row() -> None:
    def model(y: Tensor) -> None:
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with pyro.plate("items", 3, dim=-2), pyro.plate("data", len(y), dim=-1):
            pyro.sample("obs", dist.Bernoulli(p), obs=y.T)

    labels = torch.zeros(LARGE, 3)
    labels[LARGE - 5, 1] = 7
    with pytest.raises(DataError, match=rf"observes 7.0 at index \[1, {LARGE - 5}\]"):
        compile_model(model, labels, batch_size=10)


def test_supports_that_differ_from_row_to_row() -> None:
    def model(trials: Tensor, y: Tensor) -> None:
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("obs", dist.Binomial(trials, p), obs=y)

    trials = torch.arange(LARGE) % 9 + 1
    compile_model(model, {"trials": trials, "y": trials}, batch_size=10)
    with pytest.raises(DataError, match=rf"at index \[{LARGE - 9}\].*Binomial"):
        compile_model(model, {"trials": trials, "y": with_value(trials, LARGE - 9, 10)}, batch_size=10)


def test_real_valued_observations_cost_no_pass_over_the_data() -> None:
    sizes = []

    def model(x: Tensor, y: Tensor) -> None:
        sizes.append(len(x))
        linear(x, y)

    compile_model(model, {"x": torch.zeros(LARGE, 3), "y": torch.zeros(LARGE)}, batch_size=10)
    assert sum(sizes) < LARGE


def test_a_bad_derived_value_is_found_wherever_it_is() -> None:
    """Finite data may still give an infinite observation."""
    with pytest.raises(DataError, match=rf"'obs' observes -inf at index \[{LARGE - 3}\]"):
        compile_model(log_normal, with_value(torch.ones(LARGE), LARGE - 3, 0), batch_size=10)


# Errors of the user's own model reach the user


@pytest.mark.parametrize("batch_size", [None, BATCH])
def test_errors_of_the_model_pass_through(batch_size: int | None) -> None:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, -1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)

    with pytest.raises(ValueError, match="scale") as caught:
        compile_model(model, Y, batch_size=batch_size)
    assert not isinstance(caught.value, PyroScaleError)
    with pytest.raises(RuntimeError, match="Multiple sample sites named 'mu'"):
        compile_model(with_site("mu", lambda: dist.Normal(0.0, 1.0)), Y, batch_size=batch_size)


def test_forgotten_counts_are_named_before_the_discrete_site_that_they_leave() -> None:
    def counts(x: Tensor, y: Tensor | None = None) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Poisson((x @ w).exp()), obs=y)

    with pytest.raises(DiscreteSiteError, match=r"^The model's 'y' is None: pass it in data.* Site 'obs' is Poisson"):
        compile_model(counts, {"x": X})


def test_a_model_may_be_partial() -> None:
    assert compile_model(partial(linear_by_index, size=N), {**XY, "rows": torch.arange(N)}, batch_size=BATCH)
