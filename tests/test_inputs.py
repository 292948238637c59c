"""The inputs that steps take: drawn ahead in a second thread, all different, and the same after a restart."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import pytest
import torch
from model_cases import X, Y, linear
from torch import Tensor

from pyro_scale.batches import Permutations
from pyro_scale.compile import CompiledModel, compile_model
from pyro_scale.errors import ArgumentError
from pyro_scale.inputs import Chunk, Inputs, _chunk_steps
from pyro_scale.kernels import SGLD
from pyro_scale.schedules import polynomial
from pyro_scale.types import Kernel, Noise, Settings

NUM_CHAINS = 3


@pytest.fixture(scope="module")
def compiled() -> CompiledModel:
    return compile_model(linear, {"x": X, "y": Y}, batch_size=5)


SHAPES = {"w": torch.Size([3]), "b": torch.Size([])}


def inputs(
    compiled: CompiledModel,
    seeds: tuple[int, int] = (1, 2),
    num_steps: int = 600,
    ahead: bool = True,
    **settings: object,
) -> Inputs:
    kernel = SGLD(**{"step_size": 0.1, **settings})  # type: ignore[arg-type]
    return Inputs(compiled, kernel, SHAPES, NUM_CHAINS, num_steps, seeds, ahead=ahead)


@pytest.fixture
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> int:
    """Three chunks in a run of 601 steps."""
    monkeypatch.setattr("pyro_scale.inputs.CHUNK_STEPS", 256)
    return 256


def chunks(source: Inputs) -> list[Chunk]:
    """Of the whole run."""
    drawn = [source.draw(start) for start in range(0, source.num_steps + 1, source.chunk_steps)]
    source.close()
    return drawn


def steps(chunk: Chunk) -> list[tuple[Tensor | None, Noise, Settings]]:
    """Inputs of each step that is in the run."""
    return [chunk.step(number) for number in range(len(chunk.settings.step_size))]


def assert_same(found: Chunk, expected: Chunk) -> None:
    assert torch.equal(found.indices, expected.indices)  # type: ignore[arg-type]
    assert found.noise.keys() == expected.noise.keys()
    assert all(torch.equal(found.noise[name], expected.noise[name]) for name in expected.noise)
    assert all(map(torch.equal, found.settings, expected.settings))


def test_no_noise_is_used_twice(compiled: CompiledModel, short_chunks: int) -> None:
    """By no chain, step, site or chunk, and not by the start either."""
    source = inputs(compiled)
    trees = [source.noise(NUM_CHAINS), *(chunk.noise for chunk in chunks(source)), source.noise(NUM_CHAINS)]
    numbers = torch.cat([leaf.flatten() for tree in trees for leaf in tree.values()])
    assert numbers.dtype == torch.float64
    assert len(numbers) == (1 + 3 * short_chunks + 1) * NUM_CHAINS * 4
    assert len(numbers.unique()) == len(numbers)


def test_noise_is_standard_normal(compiled: CompiledModel) -> None:
    """Moments 1 to 4 of 12288 numbers within 4.5 standard errors: one seed in 30 000 fails."""
    noise = inputs(compiled, num_steps=1023).draw(0).noise
    numbers = torch.cat([leaf.flatten() for leaf in noise.values()])
    assert len(numbers) == 12288
    # variances of z, z^2, z^3, z^4
    for power, (mean, variance) in enumerate([(0, 1), (1, 2), (0, 15), (3, 96)], start=1):
        error = (float((numbers**power).mean()) - mean) / (variance / len(numbers)) ** 0.5
        print(f"moment {power}: {error:.2f} standard errors")
        assert abs(error) < 4.5


def test_chains_visit_rows_of_their_own(compiled: CompiledModel) -> None:
    indices = inputs(compiled).draw(0).indices
    assert indices is not None
    assert indices.shape == (1024, NUM_CHAINS, 5)
    for one in range(NUM_CHAINS):
        for other in range(one):
            assert not torch.equal(indices[:, one], indices[:, other])


def test_noise_and_rows_have_seeds_of_their_own(compiled: CompiledModel) -> None:
    here, other_noise, other_rows = (inputs(compiled, seeds).draw(0) for seeds in [(1, 2), (3, 2), (1, 4)])
    assert torch.equal(here.indices, other_noise.indices)  # type: ignore[arg-type]
    assert not torch.equal(here.noise["w"], other_noise.noise["w"])
    assert torch.equal(here.noise["w"], other_rows.noise["w"])
    assert not torch.equal(here.indices, other_rows.indices)  # type: ignore[arg-type]


def test_chunks_carry_the_settings_of_their_steps(compiled: CompiledModel, short_chunks: int) -> None:
    """The schedules are asked for the steps of the run and no others: a user's may be a list."""
    asked = []

    def temperature(step: int) -> float:
        asked.append(step)
        return 1.0 / (1 + step)

    schedule = polynomial(0.1, power=1.0, offset=3.0)
    source = inputs(compiled, num_steps=300, step_size=schedule, temperature=temperature)
    found = [step for chunk in chunks(source) for _, _, step in steps(chunk)]
    assert len(found) == 301
    for step, settings in enumerate(found[:300]):
        assert float(settings.step_size) == 0.1 * (1 + step / 3) ** -1
        assert float(settings.temperature) == 1 / (1 + step)
    # the step after the last one only evaluates the last draw
    assert found[300] == found[299]
    assert set(asked) == set(range(300))


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf"), "a"])
def test_a_schedule_that_goes_wrong_later_is_refused_before_the_first_step(compiled: CompiledModel, bad: float) -> None:
    with pytest.raises(ArgumentError, match=r"SGLD: step_size\(7\) is .*; it must be a non-negative finite number"):
        inputs(compiled, step_size=lambda step: bad if step == 7 else 0.1)


def test_steps_hand_out_what_the_chunk_holds(compiled: CompiledModel) -> None:
    chunk = inputs(compiled).draw(0)
    assert chunk.indices is not None
    # as compiled loops take them, with the same layout whatever the chunk's length
    assert all(tensor.is_contiguous() for tensor in (chunk.indices, *chunk.noise.values()))
    for step, (rows, noise, _) in enumerate(steps(chunk)):
        assert torch.equal(rows, chunk.indices[step])  # type: ignore[arg-type]
        assert {name: leaf.shape for name, leaf in noise.items()} == {"w": (NUM_CHAINS, 3), "b": (NUM_CHAINS,)}
        assert all(torch.equal(noise[name], chunk.noise[name][step]) for name in SHAPES)


# Ahead


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> Drawing:
    """What draws rows, and how many times; it may be held up or fail."""
    watched = Drawing()
    draw = Permutations.draw

    def watching(self: Permutations, num_steps: int) -> Tensor:
        watched.threads.append(threading.current_thread().name)
        assert watched.may_go_on.wait(60)
        if len(watched.threads) == watched.fails:
            raise MemoryError("too much")
        return draw(self, num_steps)

    monkeypatch.setattr(Permutations, "draw", watching)
    return watched


class Drawing:
    def __init__(self) -> None:
        self.threads: list[str] = []
        self.before = set(threading.enumerate())
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.fails = 0

    def alive(self) -> int:
        """Threads that draw."""
        started = set(threading.enumerate()) - self.before
        return sum(thread.name.startswith("pyro_scale.inputs") for thread in started)

    def hold_up(self) -> None:
        """Until a while after the caller has gone on to wait."""
        self.may_go_on.clear()
        threading.Timer(0.2, self.may_go_on.set).start()


def test_a_second_thread_draws_the_next_chunk_and_none_beyond_the_run(
    compiled: CompiledModel, short_chunks: int, drawing: Drawing
) -> None:
    source = inputs(compiled)
    for start in (0, short_chunks, 2 * short_chunks):
        source.draw(start)
    source.close()
    here, *others = drawing.threads
    assert here == threading.current_thread().name
    assert len(others) == 2
    assert all(name.startswith("pyro_scale.inputs") for name in others)
    assert drawing.alive() == 0


@pytest.mark.parametrize("num_steps", [255, 256])
def test_a_chunk_that_holds_the_run_is_the_only_one(compiled: CompiledModel, num_steps: int, drawing: Drawing) -> None:
    source = inputs(compiled, num_steps=num_steps)
    assert source.chunk_steps == {255: 256, 256: 512}[num_steps]
    source.draw(0)
    assert source.thread is None
    assert len(drawing.threads) == 1


class AtOnce(ThreadPoolExecutor):
    """Its thread is through before the caller goes on."""

    def submit(self, *arguments: Any, **options: Any) -> Future[Any]:
        future = super().submit(*arguments, **options)
        wait([future])
        return future


@pytest.mark.parametrize("executor", [ThreadPoolExecutor, AtOnce])
def test_draws_and_states_are_the_same_with_and_without_the_thread(
    compiled: CompiledModel, short_chunks: int, executor: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyro_scale.inputs.ThreadPoolExecutor", executor)
    ahead, plain = (inputs(compiled, ahead=ahead) for ahead in (True, False))
    for start in range(0, 601, short_chunks):
        assert_same(ahead.draw(start), plain.draw(start))
        one, other = ahead.state(), plain.state()
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in other)
    assert plain.thread is None
    ahead.close()


@pytest.mark.parametrize("ahead", [True, False])
def test_restored_inputs_are_the_same(
    compiled: CompiledModel, short_chunks: int, drawing: Drawing, ahead: bool
) -> None:
    """Also when something is being drawn ahead at the time, by the inputs that are restored."""
    source = inputs(compiled, ahead=ahead)
    source.draw(0)
    state = source.state()
    expected = source.draw(short_chunks)
    restored = inputs(compiled, seeds=(8, 9), ahead=ahead)
    restored.draw(0)
    for run in (source, restored, restored):
        drawing.hold_up()
        run.restore(state)
        assert_same(run.draw(short_chunks), expected)
    source.close()
    restored.close()


def test_noise_asked_for_while_a_chunk_is_drawn_ahead_is_what_follows_the_chunks_handed_out(
    compiled: CompiledModel, short_chunks: int, drawing: Drawing
) -> None:
    ahead, plain = (inputs(compiled, ahead=ahead) for ahead in (True, False))
    for source in (ahead, plain):
        source.draw(0)
    drawing.hold_up()
    found, expected = (source.noise(NUM_CHAINS) for source in (ahead, plain))
    assert all(torch.equal(found[name], expected[name]) for name in SHAPES)
    assert_same(ahead.draw(short_chunks), plain.draw(short_chunks))
    ahead.close()


def test_closed_inputs_stand_where_they_stood(compiled: CompiledModel, short_chunks: int, drawing: Drawing) -> None:
    source = inputs(compiled)
    source.close()
    first = source.draw(0)
    drawing.hold_up()
    source.close()
    assert drawing.alive() == 0
    again = inputs(compiled, ahead=False)
    assert_same(first, again.draw(0))
    assert_same(source.draw(short_chunks), again.draw(short_chunks))
    source.close()
    source.close()
    assert drawing.alive() == 0


def test_what_goes_wrong_in_the_thread_is_raised_where_the_chunk_is_asked_for(
    compiled: CompiledModel, short_chunks: int, drawing: Drawing
) -> None:
    drawing.fails = 2
    source, plain = (inputs(compiled, ahead=ahead) for ahead in (True, False))
    source.draw(0)
    with pytest.raises(MemoryError, match="too much"):
        source.draw(short_chunks)
    source.close()
    assert drawing.alive() == 0
    plain.draw(0)
    assert_same(source.draw(short_chunks), plain.draw(short_chunks))
    source.close()


def test_steps_of_a_huge_model_are_not_drawn_ahead(
    compiled: CompiledModel, short_chunks: int, drawing: Drawing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of their noise nor of their indices, of which the latter are more here."""
    step_bytes = 5 * NUM_CHAINS * 8
    for most, threads in [(step_bytes, 1), (step_bytes - 1, 0)]:
        monkeypatch.setattr("pyro_scale.inputs.AHEAD_BYTES", most)
        source = inputs(compiled)
        source.draw(0)
        assert drawing.alive() == threads
        source.close()


# Length


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inputs_do_not_depend_on_the_length_of_the_run(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor on that of chunks. The steps of a short run are the first ones of a long one."""
    compiled = compile_model(linear, {"x": X, "y": Y}, batch_size=5, dtype=dtype)
    long = inputs(compiled, num_steps=20_000)
    assert long.chunk_steps == 8192
    expected = long.draw(0)
    long.close()
    assert {leaf.dtype for leaf in expected.noise.values()} == {dtype}
    for num_steps, most in [(0, 8192), (20, 8192), (300, 64), (600, 256)]:
        monkeypatch.setattr("pyro_scale.inputs.CHUNK_STEPS", most)
        drawn = chunks(inputs(compiled, num_steps=num_steps))
        length = sum(chunk.length for chunk in drawn)
        assert num_steps < length
        found = Chunk(
            torch.cat([chunk.indices for chunk in drawn]),  # type: ignore[misc]
            {name: torch.cat([chunk.noise[name] for chunk in drawn]) for name in SHAPES},
            expected.settings,
            length,
        )
        first = Chunk(
            expected.indices[:length],  # type: ignore[index]
            {name: expected.noise[name][:length] for name in SHAPES},
            expected.settings,
            length,
        )
        assert_same(found, first)


@pytest.mark.parametrize(
    ("step_bytes", "num_steps", "expected"),
    [
        (1, 0, 16),
        (1, 15, 16),
        (1, 16, 32),
        (1, 8191, 8192),
        (1, 8192, 8192),
        (0, 10**6, 8192),
        (2**24 // 100, 1000, 64),
        (2**24 // 100, 20, 32),
        (2**24 // 15, 1000, 8),  # in chunks of less than a group the run's length plays no part
        (2**24 // 15, 3, 8),
        (2**24, 1000, 1),
        (2**30, 1000, 1),
    ],
)
def test_chunks_are_bounded_in_steps_and_bytes(step_bytes: int, num_steps: int, expected: int) -> None:
    assert _chunk_steps(step_bytes, num_steps + 1) == expected
    assert expected == 1 or expected * step_bytes <= 2**24


def test_large_models_and_large_batches_take_short_chunks(
    compiled: CompiledModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyro_scale.inputs.CHUNK_BYTES", 5000)
    assert inputs(compiled).chunk_steps == 32  # of the 41 that fit
    monkeypatch.setattr("pyro_scale.inputs.CHUNK_BYTES", 1200)
    wide = {"w": torch.Size([10])}
    assert Inputs(compiled, SGLD(step_size=0.1), wide, NUM_CHAINS, 600, (1, 2)).chunk_steps == 4  # of 5
    monkeypatch.setattr("pyro_scale.inputs.CHUNK_BYTES", 1)
    assert inputs(compiled).chunk_steps == 1


def test_the_example_uses_up_nothing(compiled: CompiledModel) -> None:
    untouched, source = inputs(compiled), inputs(compiled)
    indices, noise, settings = source.example()
    assert torch.equal(indices, torch.arange(5).expand(NUM_CHAINS, 5))  # type: ignore[arg-type]
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in noise.items()} == {
        "w": ((NUM_CHAINS, 3), torch.float64),
        "b": ((NUM_CHAINS,), torch.float64),
    }
    assert float(settings.step_size) == 0.1
    assert torch.equal(source.draw(0).noise["w"], untouched.draw(0).noise["w"])


@pytest.mark.parametrize("warmup_steps", [0, 1, 300, 600])
def test_steps_adapt_in_warm_up_and_only_there(compiled: CompiledModel, short_chunks: int, warmup_steps: int) -> None:
    source = Inputs(compiled, SGLD(step_size=0.1), SHAPES, NUM_CHAINS, 600, (1, 2), warmup_steps)
    found = [float(settings.adapting) for chunk in chunks(source) for *_, settings in steps(chunk)]
    assert found == [1.0] * warmup_steps + [0.0] * (601 - warmup_steps)


def test_a_kernel_may_need_neither_noise_nor_rows() -> None:
    kernel: Kernel = SGLD(step_size=0.1)
    source = Inputs(compile_model(linear, {"x": X, "y": Y}), kernel, (), NUM_CHAINS, 10, (1, 2))
    assert source.noise(NUM_CHAINS) == ()
    assert source.example()[:2] == (None, ())
    assert source.state().keys() == {"noise"}
    assert [step[:2] for step in steps(source.draw(0))] == [(None, ())] * 11
