"""What is recorded is what torch's own tracer records, keeps nothing in memory and imports no compiler."""

from __future__ import annotations

import json
import logging
import operator
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
import torch
from model_cases import MINIBATCHED, Case
from small_models import DATA, numbers, regression
from torch import Tensor, fx, nn
from torch.func import functional_call, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_scale import tracing
from pyro_scale.capture import CaptureError, record, record_or_keep
from pyro_scale.compile import compile_model
from pyro_scale.derivative import grad_and_value
from pyro_scale.handlers import defaults
from pyro_scale.inference import infer
from pyro_scale.kernels import SGHMC
from pyro_scale.kinds import Kind
from pyro_scale.recorder import ValueRead

aten: Any = torch.ops.aten


def operations(graph: fx.GraphModule) -> list[tuple[Any, Any]]:
    """What is done, with what comes of it; `make_fx` also takes what is None out of a tuple."""
    called = [node for node in graph.graph.nodes if node.op == "call_function"]
    return [(node.target, node.meta.get("kind")) for node in called if node.target is not operator.getitem]


def assert_same_recording(function: Callable[..., Any], given: list[Tensor], others: list[Tensor]) -> None:
    """As that of `make_fx`; it gives what the function gives at other inputs, to the last bit."""
    ours, theirs = tracing._by_recorder(function, given), tracing._by_make_fx(function, given)
    assert operations(ours) == operations(theirs)
    assert len(operations(ours)) > 3
    with defaults(torch.float64, torch.device("cpu")):  # which graphs are run under, unless types are written out
        found = ours(*others)
    expected = function(*others)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def flat(function: Callable[..., Any], names: list[str]) -> Callable[..., list[Tensor]]:
    """A gradient by name as a function of tensors."""

    def call(*tensors: Tensor) -> list[Tensor]:
        gradient, value = function(dict(zip(names, tensors, strict=True)))
        return [*gradient.values(), value]

    return call


@pytest.mark.parametrize("mapped", [False, True], ids=["one chain", "chains"])
@pytest.mark.parametrize("case", MINIBATCHED[::6], ids=lambda case: case.name)
def test_gradients_of_models_are_recorded_as_by_make_fx(case: Case, mapped: bool) -> None:
    model = compile_model(case.model, case.data, constants=case.constants, dtype=torch.float64)
    batch = model.batch()
    gradient = flat(grad_and_value(lambda position: model(position, batch)), list(model.latent))
    function = vmap(gradient) if mapped and case.vmaps else gradient
    chains = (3,) if mapped and case.vmaps else ()
    shapes = [(*chains, *shape, 1) for shape in model.latent.values()]
    given, others = ([0.3 * numbers(*shape, seed=seed)[..., 0] for shape in shapes] for seed in (1, 2))
    assert_same_recording(function, given, others)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.lstm(x)[0]
        return found


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "dense": (lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)), numbers(7, 3, seed=1)),
    "convolutional": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)),
        numbers(2, 1, 8, 8, seed=1),
    ),
    "recurrent": (Recurrent, numbers(2, 5, 3, seed=1)),
    "batch norm": (lambda: nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)).eval(), numbers(7, 3, seed=1)),
    "embedding": (lambda: nn.Embedding(6, 4), torch.tensor([1, 2, 2, 5])),
    "attention": (lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True), numbers(2, 5, 4, seed=1)),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("mapped", [False, True], ids=["one chain", "chains"])
@pytest.mark.parametrize("build, x", NETWORKS.values(), ids=NETWORKS)
def test_gradients_of_networks_are_recorded_as_by_make_fx(
    build: Callable[[], nn.Module], x: Tensor, mapped: bool
) -> None:
    with torch.random.fork_rng():
        module = build().double()
    weights = dict(module.named_parameters())
    gradient = flat(grad_and_value(lambda w: functional_call(module, w, (x,)).square().sum()), list(weights))
    chains = (2,) if mapped else ()
    given, others = ([0.3 * numbers(*chains, *w.shape, seed=s) for w in weights.values()] for s in (1, 2))
    assert_same_recording(vmap(gradient) if mapped else gradient, given, others)


def test_dropout_is_not_recorded(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="pyro_scale")
    gradient = grad_and_value(lambda x: nn.functional.dropout(x, 0.5).square().sum())
    with torch.random.fork_rng():
        assert record_or_keep(gradient, numbers(40, seed=1))[1] == "eager"
    assert "gives other values" in caplog.text


def test_a_gradient_that_writes_to_statistics_is_not_recorded() -> None:
    with torch.random.fork_rng():
        module = nn.BatchNorm1d(3).double()
    with pytest.raises(CaptureError, match="in-place operation"):
        record(grad_and_value(lambda x: module(x).square().sum()), numbers(40, 3, seed=1))


# Values


CONSTANTS: dict[str, Callable[[Tensor], Tensor]] = {
    "number": lambda x: x * torch.tensor(3.0).item(),
    "computed": lambda x: x * torch.arange(4.0).sum().item(),
    "compared": lambda x: x if torch.equal(torch.ones(2), torch.ones(2)) else -x,
    "condition": lambda x: x if torch.ones(2).gt(0).all() else -x,
    "index": lambda x: x[: torch.arange(4)[2]],
    "after a write to a copy": lambda x: x.clone().mul_(2.0) * torch.ones(2).sum().item(),
}


@pytest.mark.parametrize("function", CONSTANTS.values(), ids=CONSTANTS)
def test_values_that_are_the_same_in_every_call_may_decide(function: Callable[[Tensor], Tensor]) -> None:
    assert torch.equal(record(function, numbers(5, seed=1))(numbers(5, seed=2)), function(numbers(5, seed=2)))


def counting() -> Callable[[Tensor], Tensor]:
    total = torch.zeros(())

    def function(x: Tensor) -> Tensor:
        before = total.view(1)
        total.add_(1.0)
        return x * before.item()

    return function


def swallowed(x: Tensor) -> Tensor:
    try:
        return x * x.sum().item()
    except RuntimeError:
        return x


CHANGING: dict[str, Callable[[Tensor], Tensor]] = {
    "of an input": lambda x: x * x.sum().item(),
    "of the second of several results": lambda x: x * x.sort().indices[0].item(),
    "of a sum of constants and inputs": lambda x: x if (torch.ones(5) + x * 0).all() else -x,
    "random": lambda x: x * torch.rand(1).item(),
    "random, written": lambda x: x * torch.zeros(1).normal_().item(),
    "random order": lambda x: x * torch.randperm(5)[0].item(),
    "of a tensor outside that is written to": counting(),
    "in spite of the error": swallowed,
}


@pytest.mark.parametrize("function", CHANGING.values(), ids=CHANGING)
def test_values_that_change_from_call_to_call_may_not_decide(function: Callable[[Tensor], Tensor]) -> None:
    with torch.random.fork_rng(), pytest.raises(ValueRead, match=r"^aten\.\S+ reads a value that may be another"):
        tracing.traced(lambda x: [function(x)], [numbers(5, seed=1)])


# Tensors


def test_a_tensor_that_is_given_twice_is_two_inputs() -> None:
    x = numbers(5, seed=1)
    recorded = record(lambda a, b: 2 * a - b, x, x)
    assert torch.equal(recorded(x, numbers(5, seed=2)), 2 * x - numbers(5, seed=2))


def test_a_tensor_that_is_given_and_held_is_an_input_and_a_constant() -> None:
    x = numbers(5, seed=1)
    recorded = record(lambda a: 2 * a - x, x)
    assert torch.equal(recorded(numbers(5, seed=2)), 2 * numbers(5, seed=2) - x)


class Living(TorchDispatchMode):
    """Counts the results that are in memory at once."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[Any] = []
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.results.append(ref(result))
        self.most = max(self.most, sum(each() is not None for each in self.results))
        return result


def test_results_that_the_function_lets_go_of_are_freed() -> None:
    """Also where a model holds parameters. Later results take their places, and are not mistaken for them."""
    weight = nn.Parameter(numbers(5, seed=3))

    def function(x: Tensor) -> list[Tensor]:
        for _ in range(50):
            x = (x * weight).sin()
        return [x]

    with Living() as living:
        graph = tracing.traced(function, [numbers(5, seed=1)])
    assert len(living.results) >= 100
    assert living.most < 10
    assert torch.equal(graph(numbers(5, seed=2))[0], function(numbers(5, seed=2))[0])


def test_what_is_known_of_results_holds_no_numbers() -> None:
    weight = torch.ones(4, dtype=torch.float64)
    graph = tracing.traced(lambda x: [x.T @ weight, x.sort().indices], [numbers(4, 3, seed=1)])
    known = [value for node in graph.graph.nodes for value in node.meta.values()]
    assert all(type(value) is Kind for value in known)
    cpu = torch.device("cpu")
    assert Kind((3, 4), (1, 3), torch.float64, cpu) in known
    assert Kind((4, 3), (3, 1), torch.int64, cpu) in known


def test_operations_are_taken_apart_in_inference_mode() -> None:
    weight = numbers(4, 3, seed=2)

    def function(x: Tensor) -> list[Tensor]:
        return [nn.functional.linear(x, weight)]

    expected = operations(tracing.traced(function, [numbers(2, 3, seed=1)]))
    with torch.inference_mode():
        assert operations(tracing.traced(function, [numbers(2, 3, seed=1)])) == expected


def test_what_torch_compile_made_is_recorded_as_it_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    held = torch.distributions.Distribution
    monkeypatch.setattr(held, "_validate_args", held._validate_args)  # `torch.compile` sets it for the whole process
    compiled = torch.compile(lambda x: x.sin() * 2, backend="eager")

    def function(x: Tensor) -> Tensor:
        found: Tensor = compiled(x)
        return found

    expected = function(numbers(5, seed=2))
    recorded = record(function, numbers(5, seed=1))
    assert [target for target, _ in operations(recorded.graph)] == [aten.sin.default, aten.mul.Tensor]
    assert torch.equal(recorded(numbers(5, seed=2)), expected)


SPARSE: dict[str, Callable[[Tensor], Tensor]] = {
    "constant": lambda x: torch.sparse.mm(torch.eye(5, dtype=x.dtype).to_sparse(), x[:, None]),
    "made": lambda x: (torch.eye(5, dtype=x.dtype).to_sparse() * x[0]).to_dense(),
    "like": lambda x: torch.zeros_like(torch.eye(5, dtype=x.dtype).to_sparse()).to_dense() + x,
}


@pytest.mark.parametrize("function", SPARSE.values(), ids=SPARSE)
def test_sparse_tensors(function: Callable[[Tensor], Tensor]) -> None:
    assert torch.equal(record(function, numbers(5, seed=1))(numbers(5, seed=2)), function(numbers(5, seed=2)))


# Torch's own tracer


def test_make_fx_serves_where_the_recorder_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(given: list[Tensor]) -> None:
        raise AttributeError("not in this torch")

    monkeypatch.setattr(tracing, "Recorder", missing)
    recorded = record(lambda x: {"y": x.sin() + torch.ones(5).log()}, numbers(5, seed=1))
    assert torch.equal(recorded(numbers(5, seed=2))["y"], numbers(5, seed=2).sin())
    assert operations(recorded.graph) == [(aten.sin.default, Kind.of(numbers(5, seed=1)))]


@pytest.mark.parametrize("chosen", [None, "0"])
def test_the_environment_is_left_as_it_was(chosen: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if chosen is None:
        monkeypatch.delenv(tracing.NO_SHAPE_CHECKS, raising=False)
    else:
        monkeypatch.setenv(tracing.NO_SHAPE_CHECKS, chosen)
    seen = []

    def function(x: Tensor) -> Tensor:
        seen.append(os.environ[tracing.NO_SHAPE_CHECKS])
        raise KeyError

    with pytest.raises(CaptureError):
        record(function, numbers(5, seed=1))
    assert seen[0] == (chosen or "1")
    assert os.environ.get(tracing.NO_SHAPE_CHECKS) == chosen


RUN: dict[str, Any] = {"num_samples": 20, "warmup_steps": 10, "num_chains": 2, "batch_size": 6, "seed": 0}
SCRIPT = """
import json, logging, sys
import torch
torch.set_num_threads(1)
from pyro_scale.capture import record
from pyro_scale.compile import compile_model
from pyro_scale.inference import infer
from pyro_scale.kernels import SGHMC
from pyro_scale.mode import find_mode
from small_models import DATA, regression
compiled = compile_model(regression, DATA)
find_mode(compiled, compiled.initial_position(0))
record(lambda x: x.clone().mul_(2.0).sigmoid_(), torch.ones(3))
found = infer(regression, DATA, SGHMC(step_size=0.1), progress=False, jit_compile=True, **json.loads(sys.argv[1]))
imported = [name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules]
print(json.dumps([found.settings["steps_run"], found.draws["w"].tolist(), imported]))
"""


def test_a_run_whose_code_is_there_imports_no_compiler(caplog: pytest.LogCaptureFixture) -> None:
    """It would take longer than many a run. Nor do a search for modes, and operations that write to their results."""
    caplog.set_level(logging.INFO, logger="pyro_scale")
    expected = infer(regression, DATA, SGHMC(step_size=0.1), progress=False, jit_compile=True, **RUN)
    folder = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])}
    command = [sys.executable, "-c", SCRIPT, json.dumps(RUN)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=folder)
    assert done.returncode == 0, done.stderr
    how, draws, imported = json.loads(done.stdout.splitlines()[-1])
    assert (how, imported) == ("compiled", [])
    assert draws == expected.draws["w"].tolist()
