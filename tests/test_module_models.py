"""`ps.bayesian`: the density of a module with priors is the sum written by hand, and what is no model is refused."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn.utils.parametrizations import weight_norm

import pyro_scale as ps
from pyro_scale.compile import CompiledModel, compile_model

N = 24


def double(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole(high: int, *shape: int, seed: int) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def built(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """In double precision, with weights that do not depend on the global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().double()


X = double(N, 3, seed=1)
Y = double(N, seed=2)
NORMAL = dist.Normal(0.0, 1.0)


def by_inputs(name: str, value: Tensor) -> Any:
    return dist.Normal(0.0, value.shape[-1] ** -0.5)


def around(out: Tensor) -> Any:
    return dist.Normal(out.squeeze(-1), 0.5)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.LSTM | nn.GRU], bidirectional: bool = False) -> None:
        super().__init__()
        self.cells = kind(3, 4, num_layers=2, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(8 if bidirectional else 4, 1)

    def forward(self, series: Tensor) -> Tensor:
        found: Tensor = self.head(self.cells(series)[0][:, -1])
        return found


class Words(nn.Module):
    """Two inputs, one of them optional; the output layer is tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.mix = nn.Linear(4, 4)
        self.out = nn.Linear(4, 6, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, words: Tensor, extra: Tensor, gain: Tensor | None = None) -> Tensor:
        hidden = self.mix(self.embed(words).mean(1)) + extra
        logits: Tensor = self.out(hidden if gain is None else hidden * gain)
        return logits


class Normalised(nn.Module):
    """Batch normalisation by running statistics, which are far from 0 and 1."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.LayerNorm(4), nn.Linear(4, 1))
        self.layers[1].running_mean += 0.7
        self.layers[1].running_var *= 3.0
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers(x)
        return found


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    )


@dataclass(frozen=True)
class Network:
    """A module, its data, and how the same density is written with `torch.distributions`.

    Attributes:
        scale: of the normal prior of a parameter, by its name and value.
        log_likelihood: output and observations -> one number a row.
        held: names of the parameters that have no prior.
    tied: names of parameters that go by another name.
    maps: whether torch computes several chains at once; otherwise they take their steps in turn.
    """

    name: str
    make: Callable[[], nn.Module]
    data: dict[str, Tensor]
    prior: Any
    scale: Callable[[str, Tensor], float]
    likelihood: Callable[[Any], Any]
    log_likelihood: Callable[[Any, Tensor], Tensor]
    sites: Any = None
    held: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()
    maps: bool = True


def by_fan_in(_: str, value: Tensor) -> float:
    return float(value.shape[-1]) ** -0.5


def normal_rows(out: Tensor, y: Tensor) -> Tensor:
    return torch.distributions.Normal(out[:, 0], 0.5).log_prob(y)


def label_rows(out: Tensor, y: Tensor) -> Tensor:
    return out.log_softmax(-1).gather(1, y[:, None])[:, 0]


def categorical(out: Tensor) -> Any:
    return dist.Categorical(logits=out)


FRAMES = double(N, 5, 3, seed=5)
REGRESSION = {"x": X, "y": Y}
SERIES = {"x": FRAMES, "y": Y}
NETWORKS = [
    Network("mlp", mlp, REGRESSION, NORMAL, lambda *_: 1.0, around, normal_rows),
    Network(
        "convolutional", convolutional, {"x": double(N, 1, 6, 6, seed=3), "y": whole(3, N, seed=4)},
        {"*.bias": NORMAL, "0.*": dist.Normal(0.0, 2.0), "*": by_inputs},
        lambda name, w: 1.0 if name.endswith("bias") else 2.0 if name == "0.weight" else by_fan_in(name, w),
        categorical, label_rows,
    ),
    Network("lstm", lambda: Recurrent(nn.LSTM), SERIES, by_inputs, by_fan_in, around, normal_rows, maps=False),
    Network("gru", lambda: Recurrent(nn.GRU, True), SERIES, by_inputs, by_fan_in, around, normal_rows, maps=False),
    Network(
        "tied embedding", Words,
        {"words": whole(6, N, 4, seed=6), "extra": double(N, 4, seed=7), "y": whole(6, N, seed=8)},
        {"out.weight": dist.Normal(0.0, 2.0), "*": NORMAL}, lambda name, _: 2.0 if name == "embed.weight" else 1.0,
        categorical, label_rows, tied=("out.weight",),
    ),
    Network("normalised", Normalised, REGRESSION, NORMAL, lambda *_: 1.0, around, normal_rows),
    Network(
        "parametrised", lambda: nn.Sequential(weight_norm(nn.Linear(3, 4)), nn.Linear(4, 1)), REGRESSION,
        NORMAL, lambda *_: 1.0, around, normal_rows,
    ),
    Network(
        "attention",
        lambda: nn.Sequential(
            nn.TransformerEncoderLayer(3, 1, 4, dropout=0.0, batch_first=True), nn.Flatten(), nn.Linear(15, 1)
        ),
        SERIES, NORMAL, lambda *_: 1.0, around, normal_rows,
    ),
    Network(
        "last layer", mlp, REGRESSION, {"*": dist.Normal(0.0, 0.5)}, lambda *_: 0.5, around, normal_rows,
        sites="2.*", held=("0.weight", "0.bias"),
    ),
    Network(
        "biases", mlp, REGRESSION, NORMAL, lambda *_: 1.0, around, normal_rows,
        sites=["0.bias", "?.bias"], held=("0.weight", "2.weight"),
    ),
]  # fmt: skip
every_network = pytest.mark.parametrize("case", NETWORKS, ids=lambda case: case.name)


def compiled(case: Network, module: nn.Module, batch_size: int | None = None) -> CompiledModel:
    model = ps.bayesian(module, prior=case.prior, likelihood=case.likelihood, sites=case.sites)
    return compile_model(model, case.data, batch_size=batch_size, seed=0)


def random_position(model: CompiledModel, seed: int = 9, chains: tuple[int, ...] = ()) -> dict[str, Tensor]:
    shapes = model.latent.items()
    return {name: 0.4 * double(*chains, *shape, 1, seed=seed + i)[..., 0] for i, (name, shape) in enumerate(shapes)}


def by_hand(case: Network, module: nn.Module, position: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The prior's log density, and that of each row: of a copy of the module, whose weights are overwritten."""
    copy = deepcopy(module)
    prior = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        for name, parameter in copy.named_parameters():
            if name not in case.held:
                parameter.copy_(position[name])
                scale = torch.tensor(case.scale(name, parameter), dtype=torch.float64)
                prior = prior + torch.distributions.Normal(0.0, scale).log_prob(position[name]).sum()
        inputs = [value for name, value in case.data.items() if name != "y"]
        return prior, case.log_likelihood(copy(*inputs), case.data["y"])


@every_network
def test_the_log_posterior_is_the_sum_written_by_hand(case: Network) -> None:
    module = built(case.make)
    model = compiled(case, module)
    position = random_position(model)
    expected = [name for name, _ in module.named_parameters() if name not in case.held]
    assert list(model.latent) == expected and not set(case.tied) & set(expected)
    prior, rows = by_hand(case, module, position)
    torch.testing.assert_close(model.log_prior(position), prior, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model.log_posterior(position, model.batch()), prior + rows.sum(), rtol=1e-10, atol=1e-10)


@every_network
def test_minibatches_are_unbiased(case: Network) -> None:
    """The mean over all batches of a partition is the whole, in value and gradient."""
    module = built(case.make)
    model = compiled(case, module, batch_size=6)
    position = random_position(model)
    prior, rows = by_hand(case, module, position)
    batches = [model.batch(torch.arange(start, start + 6)) for start in range(0, N, 6)]
    values = torch.stack([model.log_posterior(position, batch) for batch in batches])
    torch.testing.assert_close(values.mean(), prior + rows.sum(), rtol=1e-10, atol=1e-10)
    assert values.std() > 0.01
    whole_gradient = grad(model.log_posterior)(position, model.batch(torch.arange(N)))
    gradients = [grad(model.log_posterior)(position, batch) for batch in batches]
    for name, expected in whole_gradient.items():
        torch.testing.assert_close(torch.stack([each[name] for each in gradients]).mean(0), expected)
        assert name == "embed.weight" or expected.abs().max() > 1e-6


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@every_network
def test_chains_side_by_side_are_recorded(case: Network) -> None:
    module = built(case.make)
    model = ps.bayesian(module, prior=case.prior, likelihood=case.likelihood, sites=case.sites)
    posterior = ps.infer(
        model, case.data, ps.kernels.SGLD(step_size=1e-4), num_samples=2, warmup_steps=0, thinning=1, num_chains=2,
        batch_size=6, jit_compile=False, seed=0, progress=False,
    )  # fmt: skip
    assert posterior.settings["steps_run"] == "captured"
    if not case.maps:
        return
    position = random_position(posterior.compiled, chains=(2,))
    side_by_side = vmap(posterior.compiled.log_posterior, in_dims=(0, None))(position, posterior.compiled.batch())
    for chain in range(2):
        prior, rows = by_hand(case, module, {name: leaf[chain] for name, leaf in position.items()})
        torch.testing.assert_close(side_by_side[chain], prior + rows.sum(), rtol=1e-10, atol=1e-10)


def test_recurrent_output_is_that_of_the_equations() -> None:
    """torch keeps a second list of a recurrent layer's weights, which must be the draws too."""

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells = nn.LSTM(3, 1, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.cells(x)[0][:, -1, 0]
            return found

    model = compile_model(
        ps.bayesian(built(Last), prior=NORMAL, likelihood=lambda out: dist.Normal(out, 1.0)), {"x": FRAMES, "y": Y}
    )
    position = random_position(model)
    w, u, b, c = (position[f"cells.{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    state = memory = torch.zeros(N, dtype=torch.float64)
    for time in range(FRAMES.shape[1]):
        gates = FRAMES[:, time] @ w.T + state[:, None] * u[:, 0] + b + c
        memory = gates[:, 1].sigmoid() * memory + gates[:, 0].sigmoid() * gates[:, 2].tanh()
        state = gates[:, 3].sigmoid() * memory.tanh()
    torch.testing.assert_close(model.outputs(position, model.batch())["obs"]["loc"], state)


# Runs


def test_last_layer_meets_the_exact_posterior() -> None:
    """Normal prior, known noise, features of a fixed layer: the posterior is normal, with known moments.

    12 numbers within 5 Monte Carlo standard errors: 1e-5 to fail.
    """
    module = built(mlp)
    scale, noise = 2.0, 0.5
    model = ps.bayesian(module, prior=dist.Normal(0.0, scale), likelihood=around, sites="2.*")
    run = ps.infer(model, REGRESSION, "baoab", num_samples=500, jit_compile=False, seed=0, progress=False)
    with torch.no_grad():
        features = torch.cat([module[1](module[0](X)), torch.ones(N, 1, dtype=torch.float64)], 1)
    precision = features.T @ features / noise**2 + torch.eye(6, dtype=torch.float64) / scale**2
    covariance = precision.inverse()
    mean = covariance @ (features.T @ Y) / noise**2
    draws = torch.cat([run.draws["2.weight"][:, :, 0], run.draws["2.bias"]], -1)
    blocks = draws.reshape(40, 50, 6)  # of 50 draws: longer than a chain remembers
    for value, exact in ((blocks, mean), ((blocks - mean).square(), covariance.diagonal())):
        means = value.mean(1)
        z = (means.mean(0) - exact) / (means.std(0) / 40**0.5)
        print("z:", z)
        assert z.abs().max() < 5


def test_predictions_for_new_rows() -> None:
    """The predictive mean is the mean over draws of the module's output, at rows without observations."""
    module = built(mlp)
    posterior = ps.infer(
        ps.bayesian(module, prior=NORMAL, likelihood=around), REGRESSION, ps.kernels.SGHMC(step_size=0.02),
        num_samples=5, warmup_steps=20, thinning=2, num_chains=2, batch_size=6, jit_compile=False, seed=0,
        progress=False,
    )  # fmt: skip
    assert set(posterior.draws) == {"0.weight", "0.bias", "2.weight", "2.bias"}  # and no output
    new = double(7, 3, seed=30)
    copy, outputs = deepcopy(module), []
    for chain in range(2):
        for sample in range(5):
            with torch.no_grad():
                for name, parameter in copy.named_parameters():
                    parameter.copy_(posterior.draws[name][chain, sample])
                outputs.append(copy(new)[:, 0])
    prediction = posterior.predict({"x": new})
    torch.testing.assert_close(prediction.mean["obs"], torch.stack(outputs).mean(0))
    torch.testing.assert_close(prediction.epistemic["obs"], torch.stack(outputs).var(0, correction=0))
    y = double(7, seed=31)
    found = posterior.log_likelihood({"x": new, "y": y})["obs"].flatten(0, 1)
    torch.testing.assert_close(found, torch.distributions.Normal(torch.stack(outputs), 0.5).log_prob(y))


def test_an_ensemble_is_gradient_descent_with_weight_decay() -> None:
    """Temperature 0, friction that forgets all momentum: torch's SGD on the same loss, from the chain's own start."""
    module, step = built(mlp), 0.1
    model = ps.bayesian(module, prior=NORMAL, likelihood=around)
    starts = {name: 0.3 * double(3, *p.shape, seed=40 + i) for i, (name, p) in enumerate(module.named_parameters())}
    posterior = ps.infer(
        model, REGRESSION, ps.kernels.SGHMC(step_size=step, friction=1 / step, temperature=0.0), num_samples=1,
        warmup_steps=9, num_chains=3, initial=starts, jit_compile=False, seed=0, progress=False,
    )  # fmt: skip
    for chain in range(3):
        copy = deepcopy(module)
        with torch.no_grad():
            for name, parameter in copy.named_parameters():
                parameter.copy_(starts[name][chain])
        optimiser = torch.optim.SGD(copy.parameters(), lr=step**2, weight_decay=1 / N)
        for _ in range(10):
            optimiser.zero_grad()
            ((copy(X)[:, 0] - Y).square().mean() / (2 * 0.5**2)).backward()
            optimiser.step()
        for name, parameter in copy.named_parameters():
            torch.testing.assert_close(posterior.draws[name][chain, 0], parameter.detach())


def test_a_likelihood_may_have_sites_of_its_own() -> None:
    def likelihood(out: Tensor) -> Any:
        return dist.Normal(out.squeeze(-1), pyro.sample("noise", dist.HalfNormal(2.0)))

    module = built(mlp)
    model = compile_model(ps.bayesian(module, prior=NORMAL, likelihood=likelihood, sites="2.*"), REGRESSION)
    assert list(model.latent) == ["2.weight", "2.bias", "noise"]
    position = random_position(model)
    noise = position["noise"].exp()
    with torch.no_grad():
        mean = module[1](module[0](X)) @ position["2.weight"][0] + position["2.bias"]
    expected = torch.distributions.HalfNormal(2.0).log_prob(noise) + position["noise"]
    expected = expected + torch.distributions.Normal(mean, noise).log_prob(Y).sum()
    for name in ("2.weight", "2.bias"):
        expected = expected + torch.distributions.Normal(0.0, 1.0).log_prob(position[name]).sum()
    torch.testing.assert_close(model.log_posterior(position, model.batch()), expected, rtol=1e-10, atol=1e-10)


# Priors


def sites_of(model: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    trace = poutine.trace(model).get_trace(*args, **kwargs)
    return {name: node for name, node in trace.nodes.items() if node["type"] == "sample"}


def traced(model: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    with torch.random.fork_rng():
        return sites_of(model, *args, **kwargs)


def scale_of(site: dict[str, Any]) -> Tensor:
    scale: Tensor = site["fn"].base_dist.scale
    return scale


def test_the_first_pattern_counts() -> None:
    prior = {"0.bias": dist.Normal(0.0, 3.0), "*.bias": NORMAL, "*": lambda name, value: dist.Normal(0.0, len(name))}
    found = traced(ps.bayesian(built(mlp), prior=prior, likelihood=around), X, Y)
    scales = {name: float(scale_of(found[name]).flatten()[0]) for name in ("0.bias", "2.bias", "0.weight")}
    assert scales == {"0.bias": 3.0, "2.bias": 1.0, "0.weight": len("0.weight")}


def test_priors_of_shapes_and_events() -> None:
    """A scale a column, and rows of a weight that are normal together."""
    columns = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    factor = torch.linalg.cholesky(torch.eye(3, dtype=torch.float64) + 0.5)
    for prior, expected in (
        (dist.Normal(0.0, columns), torch.distributions.Normal(0.0, columns)),
        (
            dist.MultivariateNormal(torch.zeros(3), scale_tril=factor.float()),
            torch.distributions.MultivariateNormal(torch.zeros(3).double(), scale_tril=factor.float().double()),
        ),
        (
            dist.TransformedDistribution(NORMAL, [dist.transforms.AffineTransform(1.0, columns)]),
            torch.distributions.Normal(1.0, columns),
        ),
    ):
        model = ps.bayesian(
            built(lambda: nn.Linear(3, 2, bias=False)),
            prior=prior,
            likelihood=lambda out: dist.Normal(out, 1.0).to_event(1),
        )
        whole_model = compile_model(model, {"x": X, "y": double(N, 2, seed=3)})
        position = random_position(whole_model)
        found = whole_model.log_prior(position)
        torch.testing.assert_close(found, expected.log_prob(position["weight"]).sum(), rtol=1e-10, atol=1e-10)


def test_a_prior_about_the_present_values() -> None:
    """A function gets the value, in the type of the data, as it was when the model was made."""
    module = built(mlp).float()
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    model = ps.bayesian(module, prior=lambda name, value: dist.Normal(value, 0.1), likelihood=around)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    for name, site in traced(model, X, Y).items():
        if name in before:
            torch.testing.assert_close(site["fn"].base_dist.loc, before[name].double())


def test_positive_weights_have_their_jacobian() -> None:
    module = built(lambda: nn.Linear(3, 1, bias=False))
    model = compile_model(ps.bayesian(module, prior=dist.HalfNormal(1.0), likelihood=around), REGRESSION)
    position = random_position(model)
    weight = position["weight"].exp()
    expected = torch.distributions.HalfNormal(1.0).log_prob(weight).sum() + position["weight"].sum()
    torch.testing.assert_close(model.log_prior(position), expected)


# What belongs to the module


def test_the_module_stays_as_it_is() -> None:
    """Its values, gradients, mode and statistics, whatever runs; and what becomes of it does not reach the model."""
    module = built(Normalised)
    module.layers[3].train()  # type: ignore[index, union-attr]
    state = {name: value.clone() for name, value in module.state_dict().items()}
    tensors = [*module.parameters(), *module.buffers()]
    modes = [part.training for part in module.modules()]
    model = ps.bayesian(module, prior=NORMAL, likelihood=around, sites="layers.3.*")
    ps.infer(
        model, REGRESSION, ps.kernels.SGLD(step_size=0.01), num_samples=2, warmup_steps=1, num_chains=2,
        batch_size=6, jit_compile=False, seed=0, progress=False,
    )  # fmt: skip
    assert all(one is other for one, other in zip(tensors, [*module.parameters(), *module.buffers()], strict=True))
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert modes == [part.training for part in module.modules()]
    assert all(parameter.grad is None and parameter.requires_grad for parameter in module.parameters())
    before = compile_model(model, REGRESSION)
    position = random_position(before)
    value = before.log_posterior(position, before.batch())
    with torch.no_grad():
        for tensor in tensors:
            tensor.add_(1)
    after = compile_model(model, REGRESSION)
    assert torch.equal(after.log_posterior(position, after.batch()), value)
    module.train()
    with pytest.raises(ps.errors.ArgumentError, match="BatchNorm1d in training mode"):
        compile_model(model, REGRESSION)


def test_held_values_and_priors_follow_the_type_of_the_data() -> None:
    module = built(Normalised).float()
    model = ps.bayesian(module, prior=dist.Normal(0.0, 0.5), likelihood=around, sites="layers.3.*")
    exact = built(Normalised).float().double()
    expected = ps.bayesian(exact, prior=dist.Normal(0.0, 0.5), likelihood=around, sites="layers.3.*")
    one, other = compile_model(model, REGRESSION), compile_model(expected, REGRESSION)
    position = random_position(one)
    value = one.log_posterior(position, one.batch())
    assert value.dtype == torch.float64
    assert torch.equal(value, other.log_posterior(position, other.batch()))
    single = compile_model(expected, REGRESSION, dtype=torch.float32)
    value = single.log_posterior({name: leaf.float() for name, leaf in position.items()}, single.batch())
    assert value.dtype == torch.float32


def test_all_follows_the_device_of_the_data() -> None:
    """On "meta", where tensors of other devices are refused, as on a GPU."""
    columns = torch.tensor([1.0, 2.0, 3.0])

    def about_value(name: str, value: Tensor) -> Any:
        return dist.Normal(value, 1.0, validate_args=False)

    prior = {"0.weight": dist.Normal(0.0, columns), "*": about_value}
    model = ps.bayesian(
        built(mlp), prior=prior, likelihood=lambda out: dist.Normal(out[:, 0], 0.5, validate_args=False),
        sites=["0.weight", "2.weight"],
    )  # fmt: skip
    found = traced(model, X.to("meta"))
    assert {site["value"].device.type for name, site in found.items() if name != "data"} == {"meta"}


def test_a_module_without_values_will_do_where_all_are_sites() -> None:
    module = nn.Sequential(nn.Linear(3, 4, device="meta"), nn.Linear(4, 1, device="meta"))
    model = ps.bayesian(module, prior={"*.bias": NORMAL, "*": by_inputs}, likelihood=around)
    assert torch.isfinite(compile_model(model, REGRESSION).log_prior(random_position(compile_model(model, REGRESSION))))


# Arguments


class Named(nn.Module):
    """A module whose signature a test chooses."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.forward = forward


@pytest.mark.parametrize(
    "forward, expected",
    [
        (lambda x: x, "(x, y=None)"),
        (lambda input: input, "(x, y=None)"),
        (lambda image, mask=None: image, "(x, y=None, *, mask=None)"),
        (lambda x, y2: x, "(x, y2, y=None)"),
        (lambda x, gain=2.0: x, "(x, y=None, *, gain=2.0)"),
        (lambda ids=None, mask=None, **others: ids, "(y=None, *, ids=None, mask=None)"),
        (lambda h, x=None: h, "(h, y=None, *, x=None)"),
        (lambda *, image: image, "(x, y=None)"),
    ],
)
def test_arguments_are_those_of_the_module(forward: Callable[..., Any], expected: str) -> None:
    model = ps.bayesian(Named(forward), prior=NORMAL, likelihood=around)
    assert str(inspect.signature(model)) == expected


def test_inputs_reach_the_arguments_they_name() -> None:
    seen: dict[str, Any] = {}

    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, dtype=torch.float64))

        def forward(self, edges: Tensor, image: Tensor, gain: float = 2.0, *, shift: Tensor | None = None) -> Tensor:
            seen.update(edges=edges, image=image, gain=gain, shift=shift)
            return (image * gain) @ self.weight + edges.sum()

    model = ps.bayesian(Keeps(), prior=NORMAL, likelihood=lambda out: dist.Normal(out, 1.0), observed="target")
    edges = torch.ones(2, 2, dtype=torch.float64)
    found = compile_model(model, {"image": X, "target": Y}, constants={"edges": edges}, batch_size=6, seed=0)
    assert found.sites["obs"].argument == "target" and found.sites["obs"].dims == ("data",)
    assert seen["gain"] == 2.0 and seen["shift"] is None and seen["edges"].shape == (2, 2)
    traced(model, edges, X, Y, shift=Y, gain=3.0)
    assert seen["gain"] == 3.0 and seen["shift"] is Y and seen["image"] is X


def test_pyro_runs_the_model_too() -> None:
    """Its sites, and predictions by Pyro's own tools, in the type of the data whatever the default is."""
    model = ps.bayesian(built(mlp), prior=NORMAL, likelihood=around)
    found = traced(model, X, Y)
    assert [name for name in found if name != "data"] == ["0.weight", "0.bias", "2.weight", "2.bias", "obs"]
    assert found["obs"]["is_observed"] and found["obs"]["cond_indep_stack"][0].name == "data"
    assert torch.get_default_dtype() == torch.float32 and found["0.weight"]["value"].dtype == torch.float64
    with torch.random.fork_rng(), torch.inference_mode():
        drawn = pyro.infer.Predictive(model, num_samples=3)(X)
    assert drawn["obs"].shape == (3, N)


def test_several_outputs() -> None:
    """What is no tensor reaches the likelihood as it is, and a row may have several numbers."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            mean, log_sd = self.layer(x).chunk(2, -1)
            return {"mean": mean, "log_sd": log_sd}

    module, y = built(Two), double(N, 2, seed=50)
    model = compile_model(
        ps.bayesian(
            module, prior=NORMAL, likelihood=lambda out: dist.Normal(out["mean"], out["log_sd"].exp()).to_event(1)
        ),
        {"x": X, "y": y},
    )
    position = random_position(model)
    out = X @ position["layer.weight"].T + position["layer.bias"]
    expected = torch.distributions.Normal(out[:, :2], out[:, 2:].exp()).log_prob(y).sum(1)
    torch.testing.assert_close(model.log_likelihood(position, model.batch())["obs"], expected)


# Refusals


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(2), nn.Linear(2, 1))


def with_integers() -> nn.Module:
    module = mlp()
    module.register_parameter("codes", nn.Parameter(torch.arange(3), requires_grad=False))
    return module


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.2))


MODULE_REFUSALS: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "no module": (lambda: around, {}, r"module is a function; it must be a torch\.nn\.Module, as torch\.nn\.Linear"),
    "class": (lambda: nn.Tanh, {}, "module is the class Tanh; it must be"),
    "no parameters": (nn.Tanh, {}, "module is a Tanh without parameters, so that nothing has a prior"),
    "lazy": (lazy, {}, r"parameters without shapes yet: '0\.weight', '0\.bias'\. Call it once"),
    "PyroModule": (
        lambda: nn.Sequential(pyro.nn.PyroModule[nn.Linear](3, 1)), {}, "Submodule '0' is a PyroModule, whose sites",
    ),
    "batch norm in training": (
        lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), {},
        r"Submodule '1' is a BatchNorm1d in training mode, where the statistics of a batch join its rows\. "
        r"Call module\.eval\(\) first",
    ),
    "batch norm alone": (lambda: nn.BatchNorm1d(3), {}, "^module is a BatchNorm1d in training mode"),
    "batch norm without statistics": (
        lambda: nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)).eval(), {},
        "Submodule '0' is a BatchNorm1d without running statistics, which joins .* track_running_stats=True",
    ),
    "dropout": (Grouped, {}, r"Submodule 'block\.1' is a Dropout in training mode, whose noise .* module\.eval\(\)"),
    "recurrent dropout": (
        lambda: nn.GRU(3, 2, num_layers=2, dropout=0.1), {}, "^module is a GRU in training mode, whose noise",
    ),
    "attention dropout": (
        lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), {},
        "Submodule 'self_attn' is a MultiheadAttention in training mode",
    ),
    "no likelihood": (mlp, {"likelihood": dist.Normal(0.0, 1.0)}, "likelihood is a Normal; it must be a function of"),
    "likelihood of nothing": (mlp, {"likelihood": None}, "likelihood is None; it must be a function of"),
    "number as prior": (
        mlp, {"prior": 1.0},
        r"prior is 1\.0; it must be a distribution, as dist\.Normal\(0\.0, 1\.0\) of pyro\.distributions, or a "
        "function of name and value that gives one, or a dict of them",
    ),
    "prior of torch": (
        mlp, {"prior": torch.distributions.Normal(0.0, 1.0)}, r"prior is a Normal of torch\.distributions; it must be",
    ),
    "class as prior": (mlp, {"prior": dist.Normal}, "prior is the class Normal; it must be"),
    "number in a dict": (mlp, {"prior": {"*": 2}}, r"prior\['\*'\] is 2; it must be a distribution"),
    "no number from a function": (
        mlp, {"prior": lambda name, value: 1.0}, r"prior gives 1\.0 for parameter '0\.weight'; it must give",
    ),
    "empty dict": (mlp, {"prior": {}}, "prior is an empty dict; it must have an entry"),
    "pattern without parameter": (
        mlp, {"prior": {"1.*": NORMAL, "*": NORMAL}},
        r"prior has the pattern '1\.\*', which matches no parameter; the module has '0\.weight', '0\.bias', '2",
    ),
    "pattern that comes late": (
        mlp, {"prior": {"*": NORMAL, "*.bias": NORMAL}},
        r"prior has the pattern '\*\.bias', all of whose parameters an earlier pattern has taken.* Put it before",
    ),
    "parameters without pattern": (
        mlp, {"prior": {"*.bias": NORMAL}},
        r"no pattern for the parameters '0\.weight', '2\.weight'\. Add one, .* name the others in sites",
    ),
    "prior of another shape": (
        mlp, {"prior": {"2.bias": dist.Normal(torch.zeros(3), 1.0), "*": NORMAL}},
        r"prior gives a Normal of batch shape \(3,\) and event shape \(\) for parameter '2\.bias', to whose",
    ),
    "prior of another event": (
        mlp, {"prior": dist.Dirichlet(torch.ones(4))}, r"event shape \(4,\) for parameter '0\.weight', .* \(5, 3\)",
    ),
    "more axes than the parameter": (
        mlp, {"sites": "2.bias", "prior": dist.Normal(torch.zeros(1, 1), 1.0).to_event(2)},
        r"event shape \(1, 1\) for parameter '2\.bias'",
    ),
    "discrete prior": (mlp, {"prior": dist.Bernoulli(0.5)}, r"prior gives a Bernoulli for parameter '0\.weight', wh"),
    "integers": (with_integers, {}, r"Parameter 'codes' is of torch\.int64; a prior needs floating numbers\. Hold it"),
    "site without parameter": (mlp, {"sites": "3.*"}, r"sites has the pattern '3\.\*', which matches no parameter"),
    "one of several": (mlp, {"sites": ["2.*", "bias"]}, "sites has the pattern 'bias', which matches no parameter"),
    "no sites": (mlp, {"sites": []}, r"sites is \[\]; it must be a pattern or a list of patterns"),
    "number as sites": (mlp, {"sites": 2}, "sites is 2; it must be a pattern"),
    "held on meta": (
        lambda: nn.Sequential(nn.Linear(3, 2, device="meta"), nn.Linear(2, 1)), {"sites": "1.*"},
        r"'0\.weight', '0\.bias' are on the device 'meta' and have no values",
    ),
    "forward of anything": (lambda: Named(lambda *inputs: inputs), {}, r"forward\(\*inputs\) does not name its inputs"),
    "forward of nothing": (lambda: Named(lambda: None), {}, r"forward\(\) does not name its inputs"),
    "positional only": (lambda: Named(lambda x, /: x), {}, r"forward\(x, /\) does not name its inputs"),
    "input called y": (
        lambda: Named(lambda x, y: x), {}, "observed is 'y', which is an input of the module too; .* observed='target'",
    ),
    "observed is no name": (mlp, {"observed": "my y"}, "observed is 'my y'; it must be the name of an argument"),
}  # fmt: skip


@pytest.mark.parametrize("make, changed, message", MODULE_REFUSALS.values(), ids=MODULE_REFUSALS)
def test_arguments_that_are_refused(make: Callable[[], Any], changed: dict[str, Any], message: str) -> None:
    with torch.random.fork_rng():
        module = make()
    with pytest.raises(ps.errors.ArgumentError, match=message):
        ps.bayesian(module, **{"prior": NORMAL, "likelihood": around, **changed})


LIKELIHOOD_REFUSALS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "tensor": (lambda out: out, r"likelihood gives a Tensor; it must give a distribution of pyro\.distributions"),
    "torch": (
        lambda out: torch.distributions.Normal(out[:, 0], 1.0),
        r"likelihood gives a Normal of torch\.distributions; it must give",
    ),
    "a column": (
        lambda out: dist.Normal(out, 1.0),
        r"a Normal of batch shape \(24, 1\), and the rows are 24 in 'x'; its batch shape must be \(rows,\)\. Add "
        r"\.to_event\(1\).*, or take squeeze\(-1\) of the output\.",
    ),
    "several numbers": (
        lambda out: dist.Normal(out.expand(-1, 2), 1.0), r"batch shape \(24, 2\), .* Add \.to_event\(1\), .* row\.$",
    ),
    "rows as event": (
        lambda out: dist.Normal(out.squeeze(-1), 1.0).to_event(1), r"batch shape \(\), .* Give every row its own",
    ),
    "one for all": (lambda out: dist.Normal(out.mean(), 1.0), r"batch shape \(\), and the rows are 24 in 'x'; its"),
    "other rows": (lambda out: dist.Normal(out[1:, 0], 1.0), r"batch shape \(23,\), and the rows are 24 in 'x'"),
}  # fmt: skip


@pytest.mark.parametrize("likelihood, message", LIKELIHOOD_REFUSALS.values(), ids=LIKELIHOOD_REFUSALS)
def test_likelihoods_that_are_refused(likelihood: Callable[[Tensor], Any], message: str) -> None:
    model = ps.bayesian(built(mlp), prior=NORMAL, likelihood=likelihood)
    with pytest.raises(ps.errors.ArgumentError, match=message):
        compile_model(model, REGRESSION)


@pytest.mark.parametrize("trained", ["0.weight", "1.*"], ids=["a site", "held"])
def test_modules_that_write_to_their_parameters_are_refused(trained: str) -> None:
    module = built(lambda: nn.Sequential(nn.Embedding(5, 1, max_norm=0.1), nn.Linear(1, 1)))
    model = ps.bayesian(module, prior=NORMAL, likelihood=around, sites=trained)
    with pytest.raises(ps.errors.ArgumentError, match=r"forward writes to '0\.weight', and .* max_norm=None"):
        compile_model(model, {"x": whole(5, N, seed=1), "y": Y})


def test_modules_that_join_rows_are_refused() -> None:
    """A recurrent layer that takes the rows for times gives as many outputs, each of which depends on others."""
    module = built(lambda: nn.LSTM(3, 1))
    model = ps.bayesian(module, prior=NORMAL, likelihood=lambda out: dist.Normal(out[0].squeeze(-1), 1.0))
    with pytest.raises(ps.errors.MinibatchError, match="'obs': the log density of a row depends on which other rows"):
        compile_model(model, REGRESSION, batch_size=6)
