"""The loop, compared with one written by hand: chain by chain, step by step, without capture or vectorisation."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from small_models import DATA, X, Y, correlated, decides_by_value, known_variance, regression, starts
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_scale import capture
from pyro_scale.capture import CaptureError
from pyro_scale.collected import Plan
from pyro_scale.compile import CompiledModel, compile_model
from pyro_scale.errors import ArgumentError
from pyro_scale.handlers import defaults
from pyro_scale.inputs import Inputs
from pyro_scale.kernels import SGHMC, SGLD
from pyro_scale.progress import Progress, Reporter
from pyro_scale.sample import Chains, Run, run_chains
from pyro_scale.schedules import cosine, cyclical, polynomial
from pyro_scale.types import Kernel, Position, Settings

SEEDS = (11, 12)
KERNELS: list[Kernel] = [SGHMC(step_size=0.05), SGLD(step_size=0.02)]
BATCHES = [None, 6]

every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: type(kernel).__name__)
every_batch_size = pytest.mark.parametrize("batch_size", BATCHES, ids=["full batch", "minibatches"])
# each kernel and each way to batch, but not all four pairs: to record a step takes a third of a second
every_pair = pytest.mark.parametrize(
    ("kernel", "batch_size"), list(zip(KERNELS, BATCHES, strict=True)), ids=["SGHMC-full batch", "SGLD-minibatches"]
)


def compiled(batch_size: int | None = None, **options: Any) -> CompiledModel:
    return compile_model(regression, DATA, batch_size=batch_size, **options)


def plan(
    num_samples: int = 10,
    warmup_steps: int = 0,
    thinning: int = 1,
    num_chains: int = 2,
    keep: tuple[str, ...] = ("w", "sigma", "precision"),
    save_warmup: bool = False,
    sampling: Callable[[int], bool] | None = None,
) -> Plan:
    return Plan(num_samples, warmup_steps, thinning, num_chains, keep, save_warmup, sampling)


def sample(
    model: CompiledModel, kernel: Kernel, wanted: Plan, seeds: tuple[int, int] = SEEDS, **options: Any
) -> Chains:
    return run_chains(model, kernel, wanted, starts(model, wanted.num_chains), seeds, **options)


def assert_equal_draws(one: Chains, other: Chains, count: int | None = None) -> None:
    """Bit for bit, and finite; of the first `count` draws if given."""
    for name in one.draws:
        assert torch.equal(one.draws[name][:, :count], other.draws[name][:, :count]), name
        assert torch.isfinite(one.draws[name]).all()
    assert torch.equal(one.log_posterior[:, :count], other.log_posterior[:, :count])


# By hand


class ByHand(NamedTuple):
    """Positions after 0, 1, ... steps, `(num_steps + 1, num_chains, *site)`, and each step's log posterior of them."""

    positions: Position
    log_posterior: Tensor


def by_hand(model: CompiledModel, kernel: Any, num_chains: int, num_steps: int) -> ByHand:
    """Takes the noise and the rows of the library, and nothing else: settings come from the kernel itself."""
    bound = kernel.bind(model, model.num_data)
    start = starts(model, num_chains)
    first = [{name: leaf[chain] for name, leaf in start.items()} for chain in range(num_chains)]
    inputs = Inputs(model, kernel, bound.noise_shape(first[0]), num_chains, num_steps, SEEDS)
    noise = inputs.noise(num_chains)
    states = [bound.init(first[c], {name: leaf[c] for name, leaf in noise.items()}) for c in range(num_chains)]
    positions, values = [], []
    for step in range(num_steps + 1):
        i = step % inputs.chunk_steps
        if i == 0:
            chunk = inputs.draw(step)
        settings = Settings(
            *(value(step) if callable(value) else value for value in (kernel.step_size, kernel.temperature))
        )
        positions.append([state.position for state in states])
        taken = []
        for chain in range(num_chains):
            rows = None if chunk.indices is None else chunk.indices[i, chain]
            z = {name: leaf[i, chain] for name, leaf in chunk.noise.items()}
            taken.append(bound.update(states[chain], model.batch(rows), z, settings))
        states = [state for state, _ in taken]
        values.append(torch.stack([info.log_posterior for _, info in taken]))
    stacked = {
        name: torch.stack([torch.stack([position[name] for position in chains]) for chains in positions])
        for name in first[0]
    }
    return ByHand(stacked, torch.stack(values))


def unconstrained(draws: dict[str, Tensor]) -> Position:
    """Of `regression`; steps first, as `by_hand` has them."""
    return {"w": draws["w"].transpose(0, 1), "sigma": draws["sigma"].log().transpose(0, 1)}


def assert_draws(found: dict[str, Tensor], hand: ByHand, steps: list[int]) -> None:
    for name, value in unconstrained(found).items():
        torch.testing.assert_close(value, hand.positions[name][steps], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found["precision"], found["sigma"] ** -2)


@every_pair
@pytest.mark.parametrize(
    ("wanted", "kept", "kept_in_warmup"),
    [
        (plan(4), [1, 2, 3, 4], None),
        (plan(1), [1], None),
        (plan(3, warmup_steps=1), [2, 3, 4], None),
        (plan(3, warmup_steps=5, thinning=2), [7, 9, 11], None),
        (plan(2, warmup_steps=0, thinning=5), [5, 10], None),
        (plan(2, warmup_steps=7, thinning=3, save_warmup=True), [10, 13], [3, 6]),
        (plan(2, warmup_steps=2, thinning=1, save_warmup=True, num_chains=1), [3, 4], [1, 2]),
        (plan(2, warmup_steps=0, thinning=1, save_warmup=True), [1, 2], []),
        (plan(1, warmup_steps=2, thinning=3, save_warmup=True), [5], []),
        # steps 4, 5, 9, 10, 14, 15 may give draws: the last of every pair; the warm-up takes the first two
        (plan(2, warmup_steps=5, thinning=5, sampling=lambda step: step % 5 >= 3), [10, 15], None),
        (plan(4, warmup_steps=5, thinning=3, sampling=lambda step: step % 5 >= 3), [9, 10, 14, 15], None),
        (plan(1, warmup_steps=0, thinning=8, save_warmup=True, sampling=lambda step: step == 2), [3], []),
        (plan(3, warmup_steps=2, thinning=2, sampling=lambda step: True), [4, 6, 8], None),
    ],
    ids=lambda value: (
        f"{value.warmup_steps}+{value.num_samples}x{value.thinning}{'*' * (value.sampling is not None)}"
        if isinstance(value, Plan)
        else str(value)
    ),
)
def test_kept_draws_are_those_of_a_loop_by_hand(
    kernel: Kernel, batch_size: int | None, wanted: Plan, kept: list[int], kept_in_warmup: list[int] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Draws are positions after the right steps, and their lp is what the batch of the next step says of them."""
    monkeypatch.setattr("pyro_scale.inputs.CHUNK_STEPS", 4)
    model = compiled(batch_size)
    hand = by_hand(model, kernel, wanted.num_chains, kept[-1])
    found = sample(model, kernel, wanted)
    assert found.num_steps == wanted.warmup_steps + wanted.num_samples * wanted.thinning
    assert found.ending is None
    assert found.draws["w"].shape == (wanted.num_chains, wanted.num_samples, 2)
    assert_draws(found.draws, hand, kept)
    torch.testing.assert_close(found.log_posterior, hand.log_posterior[kept].T, rtol=1e-10, atol=1e-10)
    if kept_in_warmup is None:
        assert found.warmup is None
    elif kept_in_warmup:
        assert found.warmup is not None
        assert_draws(found.warmup, hand, kept_in_warmup)
    else:
        assert found.warmup is not None
        assert all(value.numel() == 0 for value in found.warmup.values())


@pytest.mark.parametrize(
    "kernel",
    [
        SGLD(step_size=polynomial(0.1, power=1.0, offset=2.0), temperature=cosine(2.0, 0.5, num_steps=9)),
        SGHMC(step_size=cosine(0.2, 0.01, num_steps=8), temperature=polynomial(3.0, power=0.5, offset=1.0)),
        SGHMC(step_size=0.1, temperature=0.0),
        SGHMC(step_size=0.1, gradient_variance=0.3),
    ],
    ids=lambda kernel: repr(kernel)[:60],
)
def test_schedules_and_settings_reach_the_kernel(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_scale.inputs.CHUNK_STEPS", 4)
    model = compiled(6)
    found = sample(model, kernel, plan(10))
    assert_draws(found.draws, by_hand(model, kernel, 2, 10), list(range(1, 11)))
    last = kernel.step_size(9) if callable(kernel.step_size) else kernel.step_size
    assert found.step_size == last


def test_draws_are_spread_evenly_over_the_steps_that_may_give_them() -> None:
    """To within one step, whatever share of the steps they are; with no mask every `thinning`-th, as ever."""
    cycle = cyclical(0.1, cycle_steps=10, exploration=0.7)
    for num_samples, thinning in [(7, 10), (5, 13), (30, 4), (9, 4), (1, 10)]:
        masked = plan(num_samples, warmup_steps=11, thinning=thinning, sampling=cycle.sampling)
        allowed = [step + 1 for step in range(11, masked.num_steps) if step % 10 in (7, 8, 9)]
        kept = [place for place, step in enumerate(allowed, 1) if masked.kept_after(step)]
        gaps = {after - before for before, after in zip([0, *kept], kept, strict=False)}
        assert len(kept) == num_samples
        assert sum(masked.kept_after(step) for step in range(masked.num_steps + 1)) == num_samples
        assert kept[-1] == len(allowed)
        assert gaps <= {len(allowed) // num_samples, -(-len(allowed) // num_samples)}
        plain = plan(num_samples, warmup_steps=11, thinning=thinning)
        every = [11 + thinning * (draw + 1) for draw in range(num_samples)]
        assert [step for step in range(plain.num_steps + 1) if plain.kept_after(step)] == every


def test_too_few_steps_to_sample_from() -> None:
    with pytest.raises(ArgumentError) as caught:
        plan(10, warmup_steps=5, thinning=3, sampling=cyclical(0.1, cycle_steps=10, exploration=0.7).sampling)
    assert str(caught.value) == (
        "The schedule of step_size samples in 9 of the 30 steps after warm-up, too few for num_samples=10. Raise "
        "thinning, which is 3, or lower the schedule's exploration or num_samples."
    )


@every_kernel
def test_lp_is_the_log_posterior_at_the_draw(kernel: Kernel) -> None:
    model = compiled()
    found = sample(model, kernel, plan(5, warmup_steps=3, thinning=2))
    for chain in range(2):
        for draw in range(5):
            values = {name: found.draws[name][chain, draw] for name in ("w", "sigma")}
            expected = model.log_posterior(model.unconstrain(values), model.batch())
            torch.testing.assert_close(found.log_posterior[chain, draw], expected, rtol=1e-10, atol=1e-10)


# Ways to run


def not_recorded(*arguments: Any, **options: Any) -> Any:
    raise CaptureError("not today")


def not_vectorised(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    return not_recorded


WAYS: dict[str, dict[str, Callable[..., Any]]] = {
    "eager": {"record": not_recorded},
    "captured, chain by chain": {"vmap": not_vectorised},
    "eager, chain by chain": {"record": not_recorded, "vmap": not_vectorised},
}


@pytest.mark.parametrize(
    ("way", "batch_size", "num_steps"),
    [
        ("eager", 6, 1000),
        ("eager", None, 100),
        ("captured, chain by chain", 6, 300),
        ("eager, chain by chain", 6, 100),
    ],
    ids=str,
)
@every_kernel
def test_draws_do_not_depend_on_how_steps_run(
    kernel: Kernel, way: str, batch_size: int | None, num_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = compiled(batch_size)
    wanted = plan(num_steps // 50, thinning=50)
    expected = sample(model, kernel, wanted)
    for name, replacement in WAYS[way].items():
        monkeypatch.setattr(capture, name, replacement)
    found = sample(model, kernel, wanted)
    assert (expected.how, found.how) == ("captured", way)
    for name in found.draws:
        torch.testing.assert_close(found.draws[name], expected.draws[name], rtol=1e-10, atol=0)
    torch.testing.assert_close(found.log_posterior, expected.log_posterior, rtol=1e-10, atol=0)


@every_batch_size
def test_a_model_that_python_decides_over_runs_all_the_same(batch_size: int | None) -> None:
    model = compile_model(decides_by_value, {"y": Y}, batch_size=batch_size)
    kernel = SGHMC(step_size=0.3)
    found = sample(model, kernel, plan(30, keep=("mu",)))
    assert found.how == "eager, chain by chain"
    assert found.draws["mu"].gt(0).any() and found.draws["mu"].lt(0).any()
    hand = by_hand(model, kernel, 2, 30)
    torch.testing.assert_close(found.draws["mu"].T, hand.positions["mu"][1:], rtol=1e-10, atol=1e-10)


# The same chain


@every_pair
@pytest.mark.parametrize("thinning", [1, 3, 8])
def test_a_run_resumes_bit_for_bit(
    kernel: Kernel, batch_size: int | None, thinning: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From every seam between chunks, whether or not the position there is a draw; in the same run and in another."""
    monkeypatch.setattr("pyro_scale.inputs.CHUNK_STEPS", 8)
    model = compiled(batch_size)
    wanted = plan(30 // thinning, warmup_steps=4, thinning=thinning, save_warmup=True)
    whole = Run(model, kernel, wanted, starts(model, 2), SEEDS)
    states, before = [], []
    while whole.step <= wanted.num_steps:
        states.append(whole.state())
        before.append((len(whole.collected.draws), len(whole.collected.warmup)))
        assert whole.advance(Reporter(wanted.num_steps, False, None)) is None
    draws, warmup = whole.collected.draws, whole.collected.warmup
    assert len(draws) == wanted.num_samples
    another = Run(model, kernel, wanted, starts(model, 2), (98, 99))
    for state, (draws_before, warmup_before) in zip(states, before, strict=True):
        for run in (whole, another):
            run.restore(state)
            while run.step <= wanted.num_steps:
                assert run.advance(Reporter(wanted.num_steps, False, None)) is None
            assert run.collected.num_steps == wanted.num_steps
            found = pytree.tree_leaves((run.collected.draws, run.collected.warmup))
            expected = pytree.tree_leaves((draws[draws_before:], warmup[warmup_before:]))
            assert len(found) == len(expected)
            assert all(map(torch.equal, found, expected))


@every_batch_size
def test_more_draws_extend_the_same_chain(batch_size: int | None) -> None:
    model = compiled(batch_size)
    few = sample(model, KERNELS[0], plan(20, warmup_steps=7, thinning=3))
    assert_equal_draws(few, sample(model, KERNELS[0], plan(110, warmup_steps=7, thinning=3)), count=20)
    assert few.draws["w"].shape[1] == 20


def test_warm_up_and_thinning_choose_among_the_same_steps() -> None:
    model = compiled(6)
    every = sample(model, KERNELS[0], plan(300))
    chosen = sample(model, KERNELS[0], plan(29, warmup_steps=10, thinning=10))
    for name in every.draws:
        assert torch.equal(every.draws[name][:, 19::10], chosen.draws[name])


def test_draws_do_not_depend_on_who_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_scale.progress.CALLBACK_INTERVAL", 0.0)
    model = compiled(6)
    seen: list[Progress] = []
    alone = sample(model, KERNELS[0], plan(20))
    watched = sample(model, KERNELS[0], plan(20), reporter=Reporter(20, True, lambda at: seen.append(at)))
    assert len(seen) == 21
    assert_equal_draws(alone, watched)


def test_the_same_seeds_give_the_same_draws_and_others_do_not() -> None:
    model = compiled(6)
    first = sample(model, KERNELS[0], plan(5))
    assert_equal_draws(first, sample(model, KERNELS[0], plan(5)))
    for seeds in [(11, 99), (99, 12)]:
        assert not torch.equal(first.draws["w"], sample(model, KERNELS[0], plan(5), seeds).draws["w"])


def test_chains_from_the_same_start_part_ways() -> None:
    """Noise of their own at the start and at every step."""
    model = compiled()
    start = {name: leaf[:1].expand(3, *leaf.shape[1:]).clone() for name, leaf in starts(model, 1).items()}
    for kernel in (SGHMC(step_size=0.1, friction=1e-9), SGLD(step_size=0.1)):
        found = run_chains(model, kernel, plan(1, num_chains=3), start, SEEDS).draws["w"]
        assert len(found[:, 0].unique(dim=0)) == 3


def test_momenta_start_warm() -> None:
    """With hardly any friction the first step is the start's momentum, of sd sqrt(1 / N), and a gradient step.

    64 chains x 3 coordinates: the variance is within 4.5 standard errors but for one seed in 10^5.
    """
    model = compiled()
    step_size, chains = 1e-4, 64
    start = {name: leaf[:1].expand(chains, *leaf.shape[1:]).clone() for name, leaf in starts(model, 1).items()}
    kernel = SGHMC(step_size=step_size, friction=1e-9)
    found = unconstrained(run_chains(model, kernel, plan(1, num_chains=chains), start, SEEDS).draws)
    moved = [((found[name][0] - start[name]) / step_size).reshape(chains, -1) for name in start]
    ratio = torch.cat(moved, dim=1).var(dim=0).mean() * model.num_data
    error = (float(ratio) - 1) / (2 / (3 * chains)) ** 0.5
    print(f"variance of momenta {float(ratio):.3f} of 1 / N, {error:.2f} standard errors off")
    assert abs(error) < 4.5


# What comes back


def test_only_the_sites_asked_for_are_kept() -> None:
    model = compiled(6)
    found = sample(model, KERNELS[0], plan(4, warmup_steps=2, keep=("precision",), save_warmup=True))
    assert list(found.draws) == ["precision"]
    assert found.warmup is not None and list(found.warmup) == ["precision"]
    everything = sample(model, KERNELS[0], plan(4, warmup_steps=2))
    assert torch.equal(found.draws["precision"], everything.draws["precision"])


@every_pair
def test_float32_stays_float32(kernel: Kernel, batch_size: int | None) -> None:
    model = compile_model(regression, {"x": X.float(), "y": Y.float()}, batch_size=batch_size)
    found = sample(model, kernel, plan(20))
    assert {value.dtype for value in [*found.draws.values(), found.log_posterior]} == {torch.float32}
    hand = by_hand(model, kernel, 2, 20)
    assert {value.dtype for value in hand.positions.values()} == {torch.float32}
    for name, value in unconstrained(found.draws).items():
        torch.testing.assert_close(value, hand.positions[name][1:], rtol=1e-4, atol=1e-5)


def test_double_precision_is_kept_whatever_torch_s_default() -> None:
    """Constants of the model are of the data's type: with float32 constants the lp would be off by 1e-8."""
    model = compile_model(regression, DATA)
    before = sample(model, KERNELS[0], plan(10))
    with defaults(torch.float64, torch.device("cpu")):
        after = sample(compile_model(regression, DATA), KERNELS[0], plan(10))
    assert_equal_draws(before, after)


def test_clamped_noise_is_counted_by_chain() -> None:
    model = compiled(6)
    assert sample(model, SGLD(step_size=0.1), plan(7)).clamped.tolist() == [0, 0]
    # 2 * 0.1 / 20 is less than 0.1^2 * 100, so every one of 3 coordinates is clamped at every step
    assert sample(model, SGLD(step_size=0.1, gradient_variance=100.0), plan(7)).clamped.tolist() == [21, 21]


def finished(progress: Progress) -> bool:
    return False


def stopped(progress: Progress) -> bool:
    return True


def interrupted(progress: Progress) -> bool:
    raise KeyboardInterrupt


def failed(progress: Progress) -> bool:
    raise ValueError("not today")


@pytest.mark.parametrize("callback", [finished, stopped, interrupted, failed], ids=lambda callback: callback.__name__)
def test_the_thread_that_draws_ahead_ends_with_the_run(
    callback: Callable[[Progress], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it ends, and before the chunk that it was drawing is used."""
    monkeypatch.setattr("pyro_scale.inputs.CHUNK_STEPS", 4)
    monkeypatch.setattr("pyro_scale.progress.CALLBACK_INTERVAL", 0.0)
    before = set(threading.enumerate())
    started = []

    def watched(progress: Progress) -> bool:
        started.extend(set(threading.enumerate()) - before)
        return len(started) == 3 and callback(progress)  # there is a draw by then

    found = sample(compiled(6), KERNELS[0], plan(20), reporter=Reporter(20, False, watched))
    assert [thread.name for thread in started][:1] == ["pyro_scale.inputs_0"]
    assert (found.ending is None) == (callback is finished)
    assert not set(threading.enumerate()) & set(started)


def test_seconds_are_told() -> None:
    seconds = sample(compiled(), KERNELS[0], plan(3)).seconds
    assert seconds.keys() == {"capture", "compile", "sample"}
    assert seconds["compile"] == 0 < min(seconds["capture"], seconds["sample"])


def test_a_matrix_model_runs_recorded() -> None:
    model = compile_model(correlated, {"y": torch.stack([Y, Y.flip(0)], 1)})
    assert sample(model, SGLD(step_size=1e-4), plan(3, keep=("rho",))).how == "captured"


def test_scalar_sites_and_one_chain() -> None:
    model = compile_model(known_variance, {"y": Y}, batch_size=1)
    found = sample(model, KERNELS[0], plan(3, num_chains=1, keep=("mu",)))
    assert found.draws["mu"].shape == (1, 3)
    assert found.log_posterior.shape == (1, 3)
