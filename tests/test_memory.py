"""What a large model holds in memory: its state, and little beside."""

from __future__ import annotations

import gc
import sys
from typing import Any
from weakref import ref

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_scale.capture import record
from pyro_scale.collected import Plan
from pyro_scale.compile import CompiledModel, compile_model
from pyro_scale.derivative import grad_and_value
from pyro_scale.inference import infer
from pyro_scale.initial import initial_positions
from pyro_scale.kernels import BAOAB, SGHMC, SGLD
from pyro_scale.progress import Progress, Reporter
from pyro_scale.records import log_prob
from pyro_scale.sample import Run, run_chains

SHAPE = (1000, 2200)
NUMBERS = SHAPE[0] * SHAPE[1]
DATA = {"x": torch.ones(20, SHAPE[0]) / SHAPE[0], "y": torch.zeros(20)}
PLAN = Plan(2, 5, 1, 1, ("b",), False, None)


def network(x: Tensor, y: Tensor) -> None:
    """One site whose prior is expanded, one whose prior has a tensor of equal entries."""
    w = pyro.sample("w", dist.Normal(0.0, 0.1).expand(SHAPE).to_event(2))
    v = pyro.sample("v", dist.Normal(torch.zeros(SHAPE), 0.1 * torch.ones(SHAPE)).to_event(2))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal((x @ (w + v)).tanh().mean(-1) + b, 1.0), obs=y)


@pytest.fixture(scope="module")
def compiled() -> CompiledModel:
    return compile_model(network, DATA, batch_size=5)


def large_storages() -> int:
    """How many pieces of memory hold as much as one of the large sites."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if type(each) in (Tensor, torch.nn.Parameter)]
    real = [each for each in tensors if each.device.type == "cpu" and each.layout is torch.strided]
    sizes = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in real}
    return sum(size >= NUMBERS * 4 for size in sizes.values())


def test_given_starts_of_a_chain_are_not_copied(compiled: CompiledModel) -> None:
    initial = {"w": torch.ones(SHAPE), "v": torch.ones(SHAPE), "b": torch.tensor(0.5)}
    found = initial_positions(compiled, initial, [0])
    assert all(found[name].data_ptr() == initial[name].data_ptr() for name in ("w", "v"))
    settings: Any = {"num_samples": 1, "warmup_steps": 2, "num_chains": 1, "progress": False}
    infer(network, DATA, SGHMC(step_size=1e-3), batch_size=5, initial=initial, **settings)
    assert all(torch.equal(initial[name], torch.ones(SHAPE)) for name in ("w", "v"))


def test_a_compiled_model_holds_nothing_of_the_size_of_its_sites() -> None:
    before = large_storages()
    compiled = compile_model(network, DATA, batch_size=5)
    assert large_storages() == before
    assert compiled.structure.position["w"].shape == SHAPE


def test_a_run_holds_position_and_momentum(compiled: CompiledModel) -> None:
    before = large_storages()
    start = initial_positions(compiled, None, [0])
    assert large_storages() == before + 2
    run = Run(compiled, SGHMC(step_size=0.01), PLAN, start, (1, 2))
    start.clear()
    assert large_storages() == before + 4
    assert run.advance(Reporter(PLAN.num_steps, False, None)) is None
    assert large_storages() == before + 4


class Living(TorchDispatchMode):
    """How many results of the size of a large site are in memory at once; what is written in place is one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.results: dict[int, Any] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(each, Tensor) and each.untyped_storage().nbytes() >= NUMBERS * 4:
                self.results[id(each)] = ref(each)
        tensors = [each() for each in self.results.values()]
        self.most = max(self.most, len({each.untyped_storage().data_ptr() for each in tensors if each is not None}))
        return result


@pytest.mark.parametrize("kernel", [SGHMC(step_size=0.01), BAOAB(step_size=0.01), SGLD(step_size=0.01)])
def test_a_step_holds_a_gradient_beside_the_state(compiled: CompiledModel, kernel: Any) -> None:
    """Beside the gradient of the two sites one more piece, the product in both; no noise, and no second state."""
    run = Run(compiled, kernel, PLAN, initial_positions(compiled, None, [0]), (1, 2))
    assert run.advance(Reporter(PLAN.num_steps, False, None)) is None
    with Living() as living:
        assert run.advance(Reporter(PLAN.num_steps, False, None)) is None
    assert living.most <= 3 + 2 * len(run.steps.chains)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_draws_hold_what_is_kept_alone(compiled: CompiledModel, jit_compile: bool) -> None:
    before = large_storages()
    plan = Plan(4, 2, 1, 1, ("b",), save_warmup=True)
    run = Run(compiled, SGHMC(step_size=0.01), plan, initial_positions(compiled, None, [0]), (1, 2), jit_compile)
    while run.step <= plan.num_steps:
        assert run.advance(Reporter(plan.num_steps, False, None)) is None
    assert large_storages() <= before + 6  # position and momentum, and noise of the next step in one piece
    draws, warmup = run.draws([each.positions for each in run.collected.draws]), run.draws(run.collected.warmup)
    assert draws["b"].shape == (1, 4)
    assert warmup["b"].shape == (1, 2)
    everything = Plan(6, 0, 1, 1, ("b", "w"))
    start = initial_positions(compiled, None, [0])
    whole = run_chains(compiled, SGHMC(step_size=0.01), everything, start, (1, 2)).draws["b"]
    torch.testing.assert_close(torch.cat([warmup["b"], draws["b"]], 1), whole)


def test_starts_are_not_held_through_a_run() -> None:
    before, held = large_storages(), []

    def count(progress: Progress) -> None:
        held.append(large_storages())

    settings: dict[str, Any] = {"num_samples": 1, "warmup_steps": 3, "num_chains": 1, "keep": ["b"], "seed": 0}
    infer(network, DATA, SGHMC(step_size=0.01), batch_size=5, jit_compile=False, callback=count, **settings)
    start = 2 if sys.version_info < (3, 11) else 0  # whoever calls a function held its arguments then
    assert held[0] <= before + 5 + start  # position, momentum and noise, which is in one piece


def test_a_recorded_prior_has_no_constant_for_every_weight(compiled: CompiledModel) -> None:
    position = compiled.initial_position(0)
    recorded = record(grad_and_value(compiled), position, compiled.batch(torch.arange(5)))
    assert max(buffer.numel() for buffer in recorded.graph.buffers()) < 1000


def test_equal_entries_are_kept_where_an_operation_needs_them_all() -> None:
    ones = torch.ones(30, 40)

    def function(x: Tensor) -> Tensor:
        return (x * ones).sum() + (ones @ x.T).sum() + (x[0] + ones).sum()

    x = torch.linspace(-1, 1, 1200).reshape(30, 40)
    recorded = record(function, x)
    assert max(buffer.numel() for buffer in recorded.graph.buffers()) == 1
    torch.testing.assert_close(recorded(x), function(x))
    kept = record(lambda x: x + torch.arange(1200.0).reshape(30, 40), x)
    torch.testing.assert_close(kept(x), x + torch.arange(1200.0).reshape(30, 40))


def test_subtracting_nothing_is_left_out() -> None:
    recorded = record(lambda x: (x - torch.zeros(3)) * 2, torch.ones(3))
    targets = [node.target for node in recorded.graph.graph.nodes if node.op == "call_function"]
    assert targets == [torch.ops.aten.mul.Tensor]
    assert isinstance(recorded.graph, fx.GraphModule)
    subtracted = record(lambda x: torch.zeros(3) - x, torch.ones(3))
    assert torch.equal(subtracted(torch.ones(3)), -torch.ones(3))


LOC = torch.tensor([0.5, -1.0, 2.0, 0.0])
FAMILIES = {
    "expanded": dist.Normal(0.3, 2.0).expand([3, 4]),
    "expanded along an axis": dist.Normal(LOC, 2.0).expand([3, 4]),
    "event": dist.Normal(LOC, 2.0).expand([3, 4]).to_event(1),
    "events": dist.Laplace(0.3, 2.0).expand([3, 4]).to_event(2),
    "rates": dist.Gamma(2.0, LOC.exp()).expand([3, 4]),
    "of other parts": dist.StudentT(3.0, LOC).expand([3, 4]),
    "transformed": dist.LogNormal(LOC, 1.0).expand([3, 4]),
    "vectors": dist.MultivariateNormal(LOC, torch.eye(4)).expand([3]),
    "masked": dist.Normal(LOC, 2.0).expand([3, 4]).mask(torch.arange(4) > 1),
}


@pytest.mark.parametrize("fn", FAMILIES.values(), ids=FAMILIES)
def test_the_density_of_an_expanded_distribution_is_its_own(fn: Any) -> None:
    value = torch.rand(3, 4, generator=torch.Generator().manual_seed(0)) + 0.1
    site = {"fn": fn, "value": value, "mask": None, "scale": 1.0, "cond_indep_stack": ()}
    torch.testing.assert_close(log_prob(site), fn.log_prob(value))


def test_a_value_with_fewer_entries_than_its_distribution_is_counted_for_each() -> None:
    site = {"fn": dist.Normal(0.0, 1.0).expand([3, 4]), "value": torch.ones(4), "mask": None, "scale": 1.0}
    assert log_prob({**site, "cond_indep_stack": ()}).shape == (3, 4)
