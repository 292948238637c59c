"""Control variates: the same log posterior and gradient on average, none of the noise at the anchor."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from small_models import numbers
from torch import Tensor
from torch.func import grad_and_value
from torch.utils import _pytree as pytree

import pyro_scale as ps
from pyro_scale import tree
from pyro_scale.collected import Plan
from pyro_scale.compile import CompiledModel
from pyro_scale.gradient import ControlVariate, Frame, anchor_at
from pyro_scale.gradient_noise import noise_variance
from pyro_scale.kernels import BAOAB, PSGLD, SGHMC, SGLD, SGNHT
from pyro_scale.mode import find_mode
from pyro_scale.progress import Reporter
from pyro_scale.sample import Run, run_chains
from pyro_scale.types import Anchor, Batch, Position
from pyro_scale.whitening import Whitened

NUM_ROWS, SIZE, CHAINS = 60, 12, 3
X = numbers(NUM_ROWS, 2, seed=1) * torch.tensor([1.0, 30.0], dtype=torch.float64)
Y = (numbers(NUM_ROWS, seed=2) > 0).double()


def logistic(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    b = pyro.sample("b", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Bernoulli(logits=x @ w + b), obs=y)


def model() -> CompiledModel:
    return ps.compile_model(logistic, {"x": X, "y": Y}, batch_size=SIZE)


def whitened(compiled: CompiledModel) -> Whitened:
    return Whitened(compiled, find_mode(compiled, compiled.initial_position(0)), NUM_ROWS)


def all_batches(compiled: CompiledModel, anchor: Anchor) -> list[Batch]:
    """Every row once."""
    return [compiled.batch(rows)._replace(anchor=anchor) for rows in torch.arange(NUM_ROWS).split(SIZE)]


def at(seed: int) -> Position:
    return {"w": 0.1 * numbers(2, seed=seed), "b": numbers(1, seed=seed + 1)[0]}


def blocks(compiled: CompiledModel, *sizes: int) -> list[Batch]:
    return [compiled.batch(rows) for rows in torch.arange(NUM_ROWS).split(list(sizes))]


def test_the_anchor_knows_all_rows_whatever_the_blocks() -> None:
    compiled, position = model(), at(0)
    gradient, value = grad_and_value(compiled)(position, compiled.batch())
    for sizes in ((60,), (7, 20, 33)):
        anchor = anchor_at(compiled, blocks(compiled, *sizes), position)
        assert float(anchor.log_posterior) == pytest.approx(float(value), rel=1e-12)
        for name, leaf in anchor.gradient.items():
            assert torch.allclose(leaf, gradient[name], rtol=1e-12)


def test_minibatches_agree_at_the_anchor_and_on_average_elsewhere() -> None:
    compiled = model()
    target = ControlVariate(compiled)
    anchor = anchor_at(compiled, blocks(compiled, NUM_ROWS), at(0))
    batches = all_batches(compiled, anchor)
    for position, alike in ((at(0), True), (at(5), False)):
        expected, value = grad_and_value(compiled)(position, compiled.batch())
        found = [grad_and_value(target)(position, batch) for batch in batches]
        assert float(torch.stack([each[1] for each in found]).mean()) == pytest.approx(float(value), rel=1e-12)
        for name, leaf in expected.items():
            slopes = torch.stack([each[0][name] for each in found])
            assert torch.allclose(slopes.mean(0), leaf, rtol=1e-10, atol=1e-10)
            assert torch.allclose(slopes, leaf.expand_as(slopes), rtol=1e-10, atol=1e-10) == alike


def test_they_lower_the_noise_near_the_mode() -> None:
    compiled = model()
    white = whitened(compiled)
    center = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in white.shapes.items()}
    draws = {name: numbers(6, *shape, seed=7) / NUM_ROWS**0.5 for name, shape in white.shapes.items()}
    anchor = anchor_at(white, blocks(compiled, NUM_ROWS), center)
    anchors = pytree.tree_map(lambda leaf: leaf.expand(6, *leaf.shape), anchor)

    def noise(target: Any, anchors: Any) -> float:
        generator = torch.Generator().manual_seed(0)
        found = noise_variance(target, compiled.gathered, NUM_ROWS, SIZE, anchors, draws, generator)
        return float(sum(leaf.sum() for leaf in found.values()))

    assert noise(ControlVariate(white), anchors) < 0.2 * noise(white, ())


def test_the_noise_is_that_of_batches_without_replacement() -> None:
    """At one position the variance of a mean of n rows out of N is known exactly."""
    compiled, position = model(), at(0)

    def of_row(row: int) -> Tensor:
        one = compiled.batch(torch.tensor([row]))
        return tree.ravel(grad_and_value(compiled)(position, one)[0])

    rows = torch.stack([of_row(row) for row in range(NUM_ROWS)]) / NUM_ROWS
    expected = rows.var(0) / SIZE * (1 - SIZE / NUM_ROWS)
    many = {name: leaf.expand(300, *leaf.shape) for name, leaf in position.items()}
    generator = torch.Generator().manual_seed(0)
    found = noise_variance(compiled, compiled.gathered, NUM_ROWS, SIZE, (), many, generator)
    assert torch.allclose(tree.ravel(found), expected, rtol=0.1)


def frame_of(compiled: CompiledModel) -> Frame:
    """Another anchor for each chain."""
    white = whitened(compiled)
    anchors = [anchor_at(white, blocks(compiled, NUM_ROWS), tree.scale(at(chain), 0.1)) for chain in range(CHAINS)]
    return Frame(white, pytree.tree_map(lambda *leaves: torch.stack(leaves), *anchors))


def starts() -> Position:
    return tree.map(lambda *leaves: torch.stack(leaves), *(at(10 + chain) for chain in range(CHAINS)))


KERNELS = [kind(step_size=0.05) for kind in (SGLD, SGHMC, SGNHT, BAOAB, PSGLD)]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: type(kernel).__name__)
def test_compiled_chains_are_captured_ones(kernel: Any) -> None:
    compiled = model()
    frame = frame_of(compiled)
    plan = Plan(50, 20, 2, CHAINS, ("w", "b"))
    runs = [run_chains(compiled, kernel, plan, starts(), (1, 2), jit_compile=way, frame=frame) for way in (True, False)]
    assert [each.how for each in runs] == ["compiled", "captured"]
    for name, draws in runs[0].draws.items():
        assert torch.allclose(draws, runs[1].draws[name], rtol=1e-10, atol=1e-12)
    assert torch.allclose(runs[0].log_posterior, runs[1].log_posterior, rtol=1e-10)


def test_a_chain_in_a_frame_is_its_kernel_on_its_target() -> None:
    """Step by step, by hand, with the rows and noise that the run takes."""
    compiled, kernel = model(), SGHMC(step_size=0.05)
    frame, start = frame_of(compiled), starts()
    run = Run(compiled, kernel, Plan(5, 0, 1, CHAINS, ("w", "b")), start, (1, 2), False, frame)
    twin = Run(compiled, kernel, Plan(5, 0, 1, CHAINS, ("w", "b")), start, (1, 2), False, frame)
    white, anchors = frame.whitened, frame.anchor
    assert white is not None and anchors
    bound = kernel.bind(ControlVariate(white), NUM_ROWS)
    chain = 1
    state = pytree.tree_map(lambda leaf: leaf[chain], twin.steps.chains)
    assert torch.allclose(tree.ravel(white.position(state.position)), tree.ravel(at(10 + chain)), rtol=1e-10)
    chunk = twin.inputs.draw(0)
    for step in range(5):
        indices, noise, settings = chunk.step(step)
        assert indices is not None
        anchor = pytree.tree_map(lambda leaf: leaf[chain], anchors)
        batch = compiled.batch(indices[chain])._replace(anchor=anchor)
        state, _ = bound.update(state, batch, {name: leaf[chain] for name, leaf in noise.items()}, settings)
    collected = run_chains(compiled, kernel, run.plan, start, (1, 2), frame=frame)
    expected = white.position(state.position)
    assert torch.allclose(collected.draws["w"][chain, -1], expected["w"], rtol=1e-10)
    assert torch.allclose(collected.draws["b"][chain, -1], expected["b"], rtol=1e-10)


def test_a_run_in_a_frame_goes_on_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_scale.inputs.CHUNK_STEPS", 64)
    compiled = model()
    frame, plan = frame_of(compiled), Plan(40, 0, 5, CHAINS, ("w",))

    def run(seeds: tuple[int, int]) -> Run:
        return Run(compiled, SGHMC(step_size=0.05), plan, starts(), seeds, False, frame)

    first = run((1, 2))
    first.advance(Reporter(plan.num_steps, False, None))
    state = first.state()
    first.advance(Reporter(plan.num_steps, False, None))
    second = run((5, 6))
    second.restore(state)
    second.advance(Reporter(plan.num_steps, False, None))
    for one, other in zip(first.state().chains.position.values(), second.state().chains.position.values(), strict=True):
        assert torch.equal(one, other)
