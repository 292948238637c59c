"""Chains that move block by block take the steps that they take whole; here chains of any size do."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from kernel_cases import CASES, KernelCase, name_of
from small_models import COUNTS, counts, numbers
from torch import Tensor
from torch.func import grad
from torch.utils.data import DataLoader, StackDataset

from pyro_scale import tree
from pyro_scale.blocks import parts
from pyro_scale.collected import Plan
from pyro_scale.compile import CompiledModel, compile_model
from pyro_scale.gradient import Frame, without_all_rows
from pyro_scale.initial import initial_positions
from pyro_scale.kernels import BAOAB, SGHMC, SGLD
from pyro_scale.mode import Mode
from pyro_scale.pieces import Pieces
from pyro_scale.progress import Reporter
from pyro_scale.sample import Chains, Run, run_chains
from pyro_scale.whitening import Whitened

SEEDS = (11, 12)
DATA = {"x": numbers(20, 7, seed=1), "y": numbers(20, seed=2)}


def network(x: Tensor, y: Tensor) -> None:
    """A matrix, a vector, a scalar and a positive site of 70 numbers in all, which is no multiple of 16."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([7, 8]).to_event(2))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    v = pyro.sample("v", dist.Normal(0.0, 1.0).expand([12]).to_event(1))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal((x @ w).tanh() @ v[:8] + v[8:].sum() + b, scale), obs=y)


KEPT = ("w", "scale", "v", "b")
MODEL = compile_model(network, DATA, batch_size=6)

every_kernel = pytest.mark.parametrize("case", CASES, ids=name_of)


@pytest.fixture
def _by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step a chunk, as where one takes more noise than that."""
    monkeypatch.setattr("pyro_scale.inputs.CHUNK_STEPS", 1)
    monkeypatch.setattr("pyro_scale.inputs.AHEAD_BYTES", 0)
    monkeypatch.setattr("pyro_scale.inputs.SHARE", 1)
    monkeypatch.setattr("pyro_scale.blocks.BLOCK", 16)


by_block = pytest.mark.usefixtures("_by_block")


def plan(num_samples: int, num_chains: int = 1) -> Plan:
    return Plan(num_samples, 3, 2, num_chains, KEPT)


def sample(kernel: Any, wanted: Plan, model: CompiledModel = MODEL) -> Chains:
    start = initial_positions(model, None, range(wanted.num_chains))
    return run_chains(model, kernel, wanted, start, SEEDS)


def same(found: Chains, expected: Chains, rtol: float = 1e-12) -> None:
    torch.testing.assert_close(found.draws, expected.draws, rtol=rtol, atol=0)
    torch.testing.assert_close(found.log_posterior, expected.log_posterior, rtol=rtol, atol=0)
    torch.testing.assert_close(found.kinetic, expected.kinetic, rtol=rtol, atol=0)
    assert torch.equal(found.clamped, expected.clamped)


@every_kernel
def test_blocks_take_the_steps_of_the_whole(case: KernelCase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a part of the noise is known and clamped; kernels that join coordinates move whole as before."""
    kernels = [case.kernel]
    if case.knows_noise:
        kernels += [replace(case.kernel, gradient_variance=value) for value in (0.3, 1e9)]
    monkeypatch.setattr("pyro_scale.inputs.CHUNK_STEPS", 1)
    whole = [sample(kernel, plan(20)) for kernel in kernels]
    monkeypatch.setattr("pyro_scale.inputs.AHEAD_BYTES", 0)
    monkeypatch.setattr("pyro_scale.blocks.BLOCK", 16)
    for kernel, expected in zip(kernels, whole, strict=True):
        same(sample(kernel, plan(20)), expected)


@by_block
def test_which_kernels_move_by_block() -> None:
    def by_block(kernel: Any) -> bool:
        start = initial_positions(MODEL, None, [0])
        return Run(MODEL, kernel, plan(1), start, SEEDS).inputs.by_block

    assert {case.name for case in CASES if by_block(case.kernel)} == {"SGHMC", "SGLD", "BAOAB"}
    variance = {name: torch.full(shape, 0.1, dtype=torch.float64) for name, shape in MODEL.latent.items()}
    assert not any(by_block(kernel(step_size=0.01, gradient_variance=variance)) for kernel in (SGHMC, SGLD, BAOAB))


@by_block
def test_chains_draw_their_noise_one_after_another() -> None:
    """The twin takes the steps of SGHMC by hand, with a gradient of torch's."""
    step_size, friction, num_data = 0.05, 0.7, 20
    model = compile_model(network, DATA)
    found = sample(SGHMC(step_size, friction), Plan(3, 0, 1, 2, KEPT), model)
    generator, batch = torch.Generator().manual_seed(SEEDS[0]), model.batch()
    position = initial_positions(model, None, range(2))
    size = tree.size(position) // 2
    shapes = {name: leaf.shape[1:] for name, leaf in position.items()}
    first = torch.randn(2, size, generator=generator, dtype=torch.float64)
    leaves = first.split([shape.numel() for shape in shapes.values()], 1)
    momentum = {name: leaf.view(2, *shapes[name]) / num_data**0.5 for name, leaf in zip(shapes, leaves, strict=True)}
    for draw in range(3):
        for chain in range(2):
            at = {name: leaf[chain] for name, leaf in position.items()}
            slope = grad(model.log_posterior)(at, batch)
            noise = tree.unravel(torch.randn(size, generator=generator, dtype=torch.float64), shapes)
            for name in shapes:
                m, sd = momentum[name][chain], (2 * friction * step_size / num_data) ** 0.5
                m.mul_(1 - step_size * friction).add_(step_size / num_data * slope[name] + sd * noise[name])
                position[name][chain] += step_size * m
        torch.testing.assert_close(found.draws["w"][:, draw], position["w"], rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(found.draws["scale"][:, draw], position["scale"].exp(), rtol=1e-10, atol=1e-14)


@by_block
def test_starts_and_draws_are_not_written_to() -> None:
    start = initial_positions(MODEL, None, [0])
    before = tree.map(torch.clone, start)
    found = run_chains(MODEL, SGLD(step_size=0.01), plan(5), start, SEEDS)
    assert all(torch.equal(start[name], before[name]) for name in start)
    assert len(found.draws["w"][0].flatten(1).unique(dim=0)) == 5


@by_block
def test_a_run_resumes_bit_for_bit() -> None:
    def run() -> Run:
        return Run(MODEL, BAOAB(step_size=0.05), plan(20, 2), initial_positions(MODEL, None, range(2)), SEEDS)

    def finish(run: Run) -> Any:
        while run.step <= run.plan.num_steps:
            assert run.advance(Reporter(run.plan.num_steps, False, None)) is None
        run.inputs.close()
        return run.state().chains

    through, stopped, resumed = run(), run(), run()
    for _ in range(17):
        assert stopped.advance(Reporter(43, False, None)) is None
    state = stopped.state()
    expected = finish(through)
    assert stopped.advance(Reporter(43, False, None)) is None
    for again in (stopped, resumed):  # one that has drawn noise ahead, and one that has not
        again.restore(state)
        for field, other in zip(finish(again), expected, strict=True):
            assert all(torch.equal(field[name], other[name]) for name in other)


@by_block
def test_a_chain_that_diverges_ends_the_run_with_the_draws_before() -> None:
    start = {"w": torch.tensor([[0.1, 0.1], [0.1, 0.2]], dtype=torch.float64)}
    model = compile_model(counts, COUNTS)
    wanted = Plan(500, 0, 1, 2, ("w",))
    run = Run(model, SGLD(step_size=0.9), wanted, start, SEEDS)
    ending = run.finish(Reporter(wanted.num_steps, False, None))
    assert ending is not None
    assert ending.failed
    assert torch.isfinite(run.steps.chains.position["w"]).all()  # it stands still, to be looked at
    found = run_chains(model, SGLD(step_size=0.9), wanted, start, SEEDS)
    assert found.ending == ending
    assert found.draws["w"].shape[1] == found.num_steps - 1
    assert torch.isfinite(found.draws["w"]).all()


def test_whitened_chains_with_control_variates_take_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    start = initial_positions(MODEL, None, [0])
    one = tree.map(lambda leaf: leaf[0], start)
    curvature = torch.linspace(1, 100, tree.size(one), dtype=torch.float64)
    whitened = Whitened(MODEL, Mode(one, 0.0, True, 1, curvature), 20)
    frame = Frame(whitened, without_all_rows(tree.map(lambda leaf: leaf + 0.1, whitened.coordinates(start))))

    def sampled() -> Chains:
        return run_chains(MODEL, SGHMC(step_size=0.05), plan(20), start, SEEDS, frame=frame)

    monkeypatch.setattr("pyro_scale.inputs.CHUNK_STEPS", 1)
    whole = sampled()
    monkeypatch.setattr("pyro_scale.inputs.AHEAD_BYTES", 0)
    monkeypatch.setattr("pyro_scale.blocks.BLOCK", 16)
    same(sampled(), whole, rtol=1e-10)


def test_each_chain_has_its_anchor_where_a_loader_hands_all_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of batches of two lengths; without noise, which chains that move whole draw site by site."""
    model = compile_model(network, DataLoader(StackDataset(**DATA), batch_size=6, shuffle=True))
    start = initial_positions(model, None, range(2))
    one = tree.map(lambda leaf: leaf[0], start)
    whitened = Whitened(model, Mode(one, 0.0, True, 1, torch.ones(tree.size(one), dtype=torch.float64)), 20)
    at = whitened.coordinates(start)
    slopes = tree.map(lambda leaf: leaf + torch.arange(2.0).view(2, *[1] * (leaf.ndim - 1)), at)
    frame = Frame(whitened, without_all_rows(at)._replace(gradient=slopes))

    def sampled() -> Chains:
        return run_chains(model, SGHMC(step_size=0.05, temperature=0.0), plan(10, 2), start, SEEDS, frame=frame)

    monkeypatch.setattr("pyro_scale.inputs.CHUNK_STEPS", 1)
    monkeypatch.setattr("pyro_scale.inputs.AHEAD_BYTES", 0)
    monkeypatch.setattr("pyro_scale.blocks.BLOCK", 2**10)  # a chain a block
    found = sampled()
    monkeypatch.setattr("pyro_scale.inputs.AHEAD_BYTES", 2**20)
    same(found, sampled(), rtol=1e-9)


@by_block
def test_batches_of_every_length_take_their_noise_from_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    model = compile_model(network, DataLoader(StackDataset(**DATA), batch_size=6))

    def sampled() -> Chains:
        return run_chains(model, SGHMC(0.05), plan(10), initial_positions(model, None, [0]), SEEDS)

    found = sampled()
    monkeypatch.setattr("pyro_scale.inputs.Pieces", lambda *given: Pieces(*given[:-1], 1))  # none is drawn ahead
    same(found, sampled())


@by_block
@pytest.mark.parametrize("kernel", [SGHMC(0.05), SGHMC(0.05, gradient_variance=1e9), SGLD(0.01), BAOAB(0.05)])
def test_native_code_takes_the_same_steps(kernel: Any) -> None:
    """Also of blocks that are whole, in which site they may be; the clamped are counted."""
    start = initial_positions(MODEL, None, range(2))
    captured, native = (run_chains(MODEL, kernel, plan(20, 2), start, SEEDS, jit_compile=jit) for jit in (False, True))
    assert (captured.how, native.how) == ("captured, chain by chain", "compiled, chain by chain")
    same(native, captured, rtol=1e-10)


@by_block
@pytest.mark.parametrize("transposed", [False, True])
def test_native_code_serves_the_batches_of_a_loader_that_are_of_the_usual_length(transposed: bool) -> None:
    def collated(rows: Any) -> dict[str, Tensor]:
        x, y = (torch.stack([row[name] for row in rows]) for name in ("x", "y"))
        return {"x": x.T.contiguous().T if transposed and float(y.sum()) > 0 else x, "y": y}

    model = compile_model(network, DataLoader(StackDataset(**DATA), batch_size=6, collate_fn=collated))
    start = initial_positions(model, None, range(2))
    captured, native = (
        run_chains(model, SGHMC(0.05), plan(20, 2), start, SEEDS, jit_compile=jit) for jit in (False, True)
    )
    assert (captured.how, native.how) == ("captured, chain by chain", "compiled, chain by chain")
    same(native, captured, rtol=1e-10)


@by_block
def test_native_code_that_moves_otherwise_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(recorded: Any, *example: Any, in_place: int = 0) -> Any:
        def call(block: Any, *rest: Any) -> Any:
            moved = recorded(block, *rest)
            for old, new in zip((block.position, block.momentum), moved[0], strict=True):
                old["site"].copy_(new["site"].roll(1))
            return block, moved[1]

        return call if in_place else recorded

    monkeypatch.setattr("pyro_scale.blocks.compiled_function", wrong)
    start = initial_positions(MODEL, None, [0])
    expected = run_chains(MODEL, SGHMC(0.05), plan(5), start, SEEDS)
    with caplog.at_level("INFO", logger="pyro_scale"):
        found = run_chains(MODEL, SGHMC(0.05), plan(5), start, SEEDS, jit_compile=True)
    assert "A compiled block moves otherwise than the recorded one" in caplog.text
    same(found, expected)


@by_block
def test_a_run_ends_its_threads() -> None:
    run = Run(MODEL, SGHMC(0.05), plan(5), initial_positions(MODEL, None, [0]), SEEDS)
    run.finish(Reporter(run.plan.num_steps, False, None))
    assert run.inputs.pieces is not None
    assert len(run.inputs.pieces.slots) == 3
    assert not any(thread.name.startswith("pyro_scale") for thread in threading.enumerate())


def test_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    model = compile_model(network, {name: leaf.float() for name, leaf in DATA.items()}, batch_size=6)
    monkeypatch.setattr("pyro_scale.inputs.CHUNK_STEPS", 1)
    whole = sample(SGHMC(step_size=0.05), plan(20), model)
    monkeypatch.setattr("pyro_scale.inputs.AHEAD_BYTES", 0)
    monkeypatch.setattr("pyro_scale.blocks.BLOCK", 16)
    blocks = sample(SGHMC(step_size=0.05), plan(20), model)
    assert blocks.draws["w"].dtype == torch.float32
    same(blocks, whole, rtol=2e-3)


@pytest.mark.parametrize("total", [16, 31, 32, 33, 47, 48, 300])
def test_parts_are_all_coordinates_in_order(total: int) -> None:
    sizes = {"a": total - 8, "none": 0, "b": 1, "c": 7}
    found = list(parts(sizes, 16))
    for name, size in sizes.items():
        covered = [place for part in found if name in part for place in range(size)[part[name]]]
        assert covered == list(range(size))
    lengths = [sum(where.stop - where.start for where in part.values()) for part in found]
    assert lengths[:-1] == [16] * (len(lengths) - 1)
    assert 16 <= lengths[-1] < 32


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_normals_of_parts_are_those_of_one_piece(dtype: torch.dtype) -> None:
    for total in (16, 47, 300, 2**18 + 5):
        lengths = [sum(where.stop - where.start for where in part.values()) for part in parts({"a": total}, 2**16)]
        one, other = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
        pieces = [torch.randn(length, generator=one, dtype=dtype) for length in lengths]
        assert torch.equal(torch.cat(pieces), torch.randn(1, total, generator=other, dtype=dtype)[0])
        assert torch.equal(one.get_state(), other.get_state())
