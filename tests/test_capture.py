"""Recorded functions equal the functions they were recorded from; what cannot be recorded is found out, and told."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from model_cases import CASES, MINIBATCHED, Case, N
from torch import Tensor, fx
from torch.func import grad_and_value
from torch.utils import _pytree as pytree

from pyro_scale import capture
from pyro_scale.capture import CaptureError, fastest, record, record_or_keep
from pyro_scale.compile import CompiledModel, compile_model
from pyro_scale.handlers import defaults
from pyro_scale.types import Batch, Position

CHAINS = 3
BATCH = 6


def double(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_equal(found: Any, expected: Any, tolerance: float = 1e-12) -> None:
    one, other = pytree.tree_leaves(found), pytree.tree_leaves(expected)
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=tolerance, atol=tolerance)


def chain_of(tree: Any, index: int) -> Any:
    return pytree.tree_map(lambda leaf: leaf[index] if isinstance(leaf, Tensor) else leaf, tree)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [found.getMessage() for found in caplog.records if found.name == "pyro_scale"]


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="pyro_scale")


# Models


def inputs(model: CompiledModel, seed: int) -> tuple[Position, Batch]:
    """Positions of all chains near 0, and rows for each chain where the model allows."""
    position = {name: 0.5 * double(CHAINS, *shape, seed=seed) for name, shape in model.latent.items()}
    if model.batch_size is None:
        return position, model.batch()
    generator = torch.Generator().manual_seed(seed)
    part = {
        name: leaf.narrow(1 + model.local[name], 0, BATCH) if name in model.local else leaf
        for name, leaf in position.items()
    }
    return part, model.batch(torch.randint(N, (CHAINS, BATCH), generator=generator))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gradients_of_all_chains_are_those_of_one_chain_after_another(
    case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    """At positions and rows other than those of the recording."""
    size = BATCH if case.minibatch else None
    model = compile_model(case.model, case.data, constants=case.constants, batch_size=size, dtype=torch.float64)
    caplog.clear()  # of the parameters that are held
    gradient = grad_and_value(model)
    function, how, *_ = fastest(gradient, (True, case.minibatch), *inputs(model, 1))
    position, batch = inputs(model, 2)
    one_by_one = [
        gradient(chain_of(position, i), chain_of(batch, i) if case.minibatch else batch) for i in range(CHAINS)
    ]
    assert_equal(function(position, batch), pytree.tree_map(lambda *leaves: torch.stack(leaves), *one_by_one))
    assert ("chain by chain" in how) is not case.vmaps
    assert len(lines(caplog)) == (how != "captured")


def test_most_models_are_recorded(caplog: pytest.LogCaptureFixture) -> None:
    """The test above would pass if none was."""
    ways = []
    for case in CASES[:12]:
        model = compile_model(case.model, case.data, constants=case.constants, dtype=torch.float64)
        ways.append(fastest(grad_and_value(model), (True, False), *inputs(model, 1))[1])
    assert set(ways) == {"captured", "captured, chain by chain"}
    assert len(lines(caplog)) == ways.count("captured, chain by chain")


# record


def in_place(x: Tensor) -> Tensor:
    copy = x.clone()
    copy[0] = 3.0
    copy.mul_(x)
    copy[1:].add_(1.0)
    return copy


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "views": lambda x: x[1:].flip(0) * x.reshape(-1)[:-1],
    "in place": in_place,
    "scatter": lambda x: torch.zeros(5, dtype=x.dtype).index_add_(0, torch.tensor([0, 0, 1, 2, 4]), x),
    "constant result": lambda x: {"x": x, "one": torch.ones(2), "number": 2.5},
    "nested result": lambda x: [(x, {"a": x + 1}), x.sum()],
    "factorisation": lambda x: torch.linalg.cholesky(x[:, None] * x + torch.eye(5, dtype=x.dtype)),
    "several results of one operation": lambda x: x.sort().values + torch.arange(5.0).sort().indices,
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_recorded_equals_the_function_at_other_arguments(function: Callable[..., Any]) -> None:
    captured = record(function, double(5, seed=1))
    for seed in (2, 3):
        x = double(5, seed=seed)
        assert_equal(captured(x), function(x))
        assert torch.equal(x, double(5, seed=seed)), "the argument was written to"


def test_an_argument_that_is_written_to_is_written_to_again() -> None:
    captured = record(lambda x: x.add_(torch.ones(5, dtype=x.dtype)), double(5, seed=1))
    x = double(5, seed=2)
    captured(x)
    assert_equal(x, double(5, seed=2) + 1)


def test_a_tensor_outside_that_is_written_to_is_written_to_at_every_call() -> None:
    total = torch.zeros((), dtype=torch.float64)
    captured = record(lambda x: x * total.add_(1.0), double(5))
    assert float(total) == 1
    assert_equal([captured(double(5)) for _ in range(3)], [2 * double(5), 3 * double(5), 4 * double(5)])


def test_numbers_are_taken_as_they_are() -> None:
    """They are part of the recording: a batch's scale, say, is the same at every step."""
    captured = record(lambda x, factor, flag: x * factor if flag else x, double(5), 3.0, True)
    assert_equal(captured(double(5, seed=1), 3.0, True), 3 * double(5, seed=1))


def test_arguments_keep_their_structure() -> None:
    captured = record(lambda a, b: {"sum": a["x"] + b[0]}, {"x": double(5), "y": double(2)}, (double(5), None))
    assert_equal(
        captured({"x": double(5, seed=1), "y": double(2)}, (double(5, seed=2), None)),
        double(5, seed=1) + double(5, seed=2),
    )


def test_a_recording_does_not_track_gradients() -> None:
    weight = torch.ones(5, dtype=torch.float64, requires_grad=True)
    assert not record(lambda x: x * weight, double(5))(double(5)).requires_grad


VALUE_READERS: dict[str, Callable[[Tensor], Any]] = {
    "if": lambda x: x if x.sum() > 0 else -x,
    "item": lambda x: x * x.sum().item(),
    "float": lambda x: x * float(x[0]),
    "list": lambda x: x * max(x.tolist()),
    "loop": lambda x: sum((x for _ in range(int(x.abs().sum()))), x),
}


@pytest.mark.parametrize("function", VALUE_READERS.values(), ids=VALUE_READERS)
def test_values_decide_the_course(function: Callable[[Tensor], Any], caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(CaptureError, match=r"(ValueRead: .* reads a value that may be another|RuntimeError: tolist)"):
        record(function, double(5))
    example, other = double(CHAINS, 5, seed=1), double(CHAINS, 5, seed=2)
    chosen, how, *_ = fastest(function, (True,), example)
    assert how == "eager, chain by chain"
    assert_equal(chosen(other), torch.stack([torch.as_tensor(function(x)) for x in other]))
    (line,) = lines(caplog)
    assert "cannot be vectorised over chains: RuntimeError: " in line
    assert re.search("Capture failed: (ValueRead|RuntimeError): ", line)
    assert ".." not in line and "\n" not in line


def test_the_function_s_own_error_is_the_reason() -> None:
    def fails(x: Tensor) -> Tensor:
        raise KeyError("no such site\nmore")

    with pytest.raises(CaptureError, match=r"^KeyError: 'no such site"):
        record(fails, double(5))
    with pytest.raises(KeyError):
        fastest(fails, (True,), double(CHAINS, 5))


def test_a_function_that_reads_outside_state_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    def counting(x: Tensor) -> Tensor:
        calls.append(None)
        return x * len(calls)

    chosen, how, *_ = fastest(counting, (True,), double(CHAINS, 5))
    assert how == "eager"
    before = len(calls)
    assert_equal(chosen(double(CHAINS, 5, seed=1)), (before + 1) * double(CHAINS, 5, seed=1))
    assert lines(caplog) == [
        "Steps run through Pyro's handlers. The captured graph gives other values: the model reads outside state."
    ]


def test_what_cannot_be_vectorised_is_recorded_for_one_chain(caplog: pytest.LogCaptureFixture) -> None:
    def writes(x: Tensor, offset: Tensor) -> dict[str, Tensor]:
        total = torch.zeros((), dtype=x.dtype)
        return {"total": total.add_(x.sum()), "offset": offset}

    chosen, how, *_ = fastest(writes, (True, False), double(CHAINS, 5), double(2))
    assert how == "captured, chain by chain"
    found = chosen(double(CHAINS, 5, seed=1), double(2, seed=2))
    assert_equal(found, {"total": double(CHAINS, 5, seed=1).sum(1), "offset": double(2, seed=2).expand(CHAINS, 2)})
    (line,) = lines(caplog)
    assert line.startswith("Chains run one after another, captured. The model cannot be vectorised over chains: ")


def test_steps_are_not_tied_together_by_parameters_of_the_model() -> None:
    """A module's weights ask for gradients; kept for every step, they would fill the memory."""
    weight = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    def reads_values(x: Tensor) -> Tensor:
        sign = 1 if float(x.detach().sum()) > 0 else -1
        return sign * grad_and_value(lambda y: (weight * y**2).sum())(x)[0]

    def counting(x: Tensor) -> Tensor:
        calls.append(None)
        return len(calls) * weight * x

    calls: list[None] = []
    ways = []
    for function in (reads_values, counting, lambda x: weight * x):
        chosen, how, *_ = fastest(function, (True,), double(CHAINS, 5))
        ways.append(how)
        assert not chosen(double(CHAINS, 5, seed=1)).requires_grad
    assert ways == ["eager, chain by chain", "eager", "captured"]


def test_record_or_keep(caplog: pytest.LogCaptureFixture) -> None:
    function, how = record_or_keep(torch.sin, double(5))
    assert how == "captured"
    assert_equal(function(double(5, seed=1)), double(5, seed=1).sin())
    assert not lines(caplog)
    kept, how = record_or_keep(VALUE_READERS["if"], double(5))
    assert (kept, how) == (VALUE_READERS["if"], "eager")
    (line,) = lines(caplog)
    assert line.startswith("The log posterior runs through Pyro's handlers. Capture failed: ValueRead: ")


# Types


MAKERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "made of nothing": lambda x, count: x * torch.full((5,), 0.1) + torch.ones(5) / 3 + torch.arange(0.0, 1.0, 0.2),
    "made of whole numbers": lambda x, count: x + (count / 3) * count.log() + count.sum() / 7 + (count > 2) * 0.1,
    "chosen": lambda x, count: x + torch.where(count > 2, 0.1, 1 / 3),
    "without an argument": lambda x, count: torch.full((5,), 0.1).log() + torch.arange(1, 6).log(),
    "like an argument": lambda x, count: torch.full_like(count, 0.1, dtype=None).div(3) + torch.zeros_like(x).sum(),
}


@pytest.mark.parametrize("function", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_recording_keeps_the_types_of_its_making(function: Callable[..., Tensor], dtype: torch.dtype) -> None:
    """A model runs under the default type of its data, its recording under the caller's."""
    outside = torch.float32 if dtype == torch.float64 else torch.float64

    def model(x: Tensor, count: Tensor) -> Tensor:
        with defaults(dtype, torch.device("cpu")):
            return function(x, count)

    count = torch.tensor([1, 2, 3, 4, 5])
    with defaults(outside, torch.device("cpu")):
        found = record(model, double(5).to(dtype), count)(double(5, seed=1).to(dtype), count + 1)
    assert found.dtype == dtype
    assert_equal(found, model(double(5, seed=1).to(dtype), count + 1), 1e-15 if dtype == torch.float64 else 1e-6)


# Constants


def folded(function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, *example: Any) -> tuple[fx.GraphModule, int]:
    """The graph after folding, and the number of operations that it had before."""
    graphs = []
    simplify = capture.simplify

    def keep(graph: fx.GraphModule, known: Mapping[int, Tensor]) -> None:
        graphs.append((graph, len(operations(graph))))
        simplify(graph, known)

    monkeypatch.setattr(capture, "simplify", keep)
    record(function, *example)
    return graphs[0]


def operations(graph: fx.GraphModule) -> list[fx.Node]:
    return [node for node in graph.graph.nodes if node.op == "call_function"]


def test_what_no_argument_enters_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def prior(x: Tensor) -> Tensor:
        scale = torch.full((5,), 2.0, dtype=x.dtype).log().exp() + torch.arange(5)
        return (x / scale).sum() + torch.ones(3, dtype=x.dtype).sum()

    graph, before = folded(prior, monkeypatch, double(5))
    assert (before, [node.target for node in operations(graph)]) == (
        10,
        [torch.ops.aten.div.Tensor, torch.ops.aten.sum.default, torch.ops.aten.add.Tensor],
    )
    assert_equal(graph(double(5, seed=1))[0], prior(double(5, seed=1)))


def test_random_operations_are_not_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    def noisy(x: Tensor) -> Tensor:
        return (
            x + torch.rand(5, dtype=x.dtype) + torch.zeros(5, dtype=x.dtype).normal_() + torch.ones(2).bernoulli(0.5)[0]
        )

    with torch.random.fork_rng():
        graph, _ = folded(noisy, monkeypatch, double(5))
        names = {str(node.target) for node in operations(graph)}
        assert {"aten.rand.default", "aten.bernoulli.p"} <= names
        assert not torch.equal(graph(double(5))[0], graph(double(5))[0])


def test_writes_to_an_argument_survive(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, _ = folded(lambda x: x.add_(torch.ones(5, dtype=x.dtype)), monkeypatch, double(5))
    assert any(node.target._schema.is_mutable for node in operations(graph))  # type: ignore[union-attr]


@pytest.mark.parametrize("case", MINIBATCHED[::6], ids=lambda case: case.name)
def test_folding_shortens_models_and_changes_no_value(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    model = compile_model(case.model, case.data, constants=case.constants, dtype=torch.float64)
    position = chain_of(inputs(model, 1)[0], 0)
    graph, before = folded(grad_and_value(model), monkeypatch, position, model.batch())
    assert len(operations(graph)) < before
    monkeypatch.setattr(capture, "simplify", lambda graph, known: None)
    other = chain_of(inputs(model, 2)[0], 0)
    unfolded = record(grad_and_value(model), position, model.batch())(other, model.batch())
    assert_equal(
        graph(*pytree.tree_leaves((other, model.batch().data, model.batch().indices))), pytree.tree_leaves(unfolded), 0
    )
