"""Native loops take the steps that captured and eager ones take, keep what they keep and stop where they stop."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from kernel_cases import CASES, KernelCase, name_of
from local_models import crossed
from small_models import COUNTS, DATA, NUM_ROWS, X, Y, correlated, counts, numbers, regression, starts
from torch import Tensor, nn
from torch._inductor import config
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

from pyro_scale import capture, native
from pyro_scale.capture import CaptureError, record
from pyro_scale.collected import Chains, Plan
from pyro_scale.compile import CompiledModel, compile_model
from pyro_scale.inference import infer
from pyro_scale.inlined import compiled_function
from pyro_scale.kernels import SGHMC, SGLD
from pyro_scale.loop import Loop
from pyro_scale.native import NativeError, compile_native
from pyro_scale.sample import run_chains
from pyro_scale.schedules import cyclical, polynomial

SEEDS = (11, 12)
KERNEL = SGHMC(step_size=0.1)


def sample(model: CompiledModel, kernel: Any, plan: Plan, jit_compile: Any, **options: Any) -> Chains:
    start = starts(model, plan.num_chains)
    return run_chains(model, kernel, plan, start, SEEDS, jit_compile=jit_compile, **options)


def assert_same(found: Chains, expected: Chains, tolerance: float = 1e-10) -> None:
    assert len(expected.draws) > 0
    for name in expected.draws:
        torch.testing.assert_close(found.draws[name], expected.draws[name], rtol=tolerance, atol=1e-14)
    torch.testing.assert_close(found.log_posterior, expected.log_posterior, rtol=tolerance, atol=1e-12)
    assert torch.equal(found.clamped, expected.clamped)
    assert found.num_steps == expected.num_steps


def not_recorded(*arguments: Any, **options: Any) -> Any:
    raise CaptureError("not today")


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_eager_captured_and_compiled_steps_are_the_same(case: KernelCase, monkeypatch: pytest.MonkeyPatch) -> None:
    """To 1e-10 in float64 over 1000 steps, of which the first 200 warm up."""
    model = compile_model(regression, DATA, batch_size=6)
    plan = Plan(80, 200, 10, 2, ("w", "sigma"))
    compiled = sample(model, case.kernel, plan, jit_compile=True)
    captured = sample(model, case.kernel, plan, jit_compile=False)
    monkeypatch.setattr(capture, "record", not_recorded)
    eager = sample(model, case.kernel, plan, jit_compile=False)
    assert (eager.how, captured.how, compiled.how) == ("eager", "captured", "compiled")
    assert compiled.num_steps == 1000
    assert_same(captured, eager)
    assert_same(compiled, eager)


def not_vectorised(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    return not_recorded


@pytest.mark.parametrize("num_chains", [1, 3])
def test_chains_one_after_another_share_a_loop(num_chains: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = compile_model(regression, DATA, batch_size=6)
    plan = Plan(40, 20, 5, num_chains, ("w", "sigma"))
    expected = sample(model, KERNEL, plan, jit_compile=False)
    monkeypatch.setattr(capture, "vmap", not_vectorised)
    found = sample(model, KERNEL, plan, jit_compile=True)
    assert found.how == ("compiled" if num_chains == 1 else "compiled, chain by chain")
    assert_same(found, expected)


def test_full_batch_schedules_and_what_is_kept() -> None:
    """Draws from the cold phases of a cycle alone, positions of the warm-up, noise that is clamped."""
    model = compile_model(regression, DATA)
    schedule = cyclical(0.3, cycle_steps=40, exploration=0.5)
    kernel = SGHMC(step_size=schedule, temperature=polynomial(1.0, power=0.3), gradient_variance=1.0)
    plan = Plan(33, 50, 3, 2, ("w", "precision"), save_warmup=True, sampling=schedule.sampling)
    found, expected = (sample(model, kernel, plan, jit_compile=way) for way in (True, False))
    assert_same(found, expected)
    assert expected.clamped.min() > 0
    assert found.warmup is not None and expected.warmup is not None
    for name in expected.warmup:
        torch.testing.assert_close(found.warmup[name], expected.warmup[name], rtol=1e-10, atol=0)


def test_rows_of_local_sites_are_moved_in_place() -> None:
    """Tables of all rows, of which a step moves those of its batch; their moments over draws that are not kept."""
    data = {"y": numbers(30, 4, seed=3)}
    model = compile_model(crossed, data, batch_size=7)
    plan = Plan(20, 30, 4, 2, ("mu", "offset"))
    found, expected = (sample(model, KERNEL, plan, jit_compile=way) for way in (True, False))
    assert found.how == "compiled"
    assert_same(found, expected)
    assert set(found.moments) == set(expected.moments) >= {"theta", "factor"}
    for name in expected.moments:
        torch.testing.assert_close(found.moments[name], expected.moments[name], rtol=1e-9, atol=1e-12)


def test_batches_of_a_loader() -> None:
    """The short last batch of each pass, whose scale is another, is stepped by the recorded function."""
    expected, found = (
        infer(
            regression,
            DataLoader(TensorDataset(X, Y), batch_size=6, shuffle=True),
            KERNEL,
            num_samples=30,
            thinning=2,
            num_chains=2,
            seed=4,
            jit_compile=way,
            progress=False,
        )
        for way in (False, True)
    )
    assert found.settings["steps_run"] == "compiled"
    for name in expected.draws:
        torch.testing.assert_close(found.draws[name], expected.draws[name], rtol=1e-10, atol=0)


def test_compiling_after_the_short_batch_of_a_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code is of the usual length, whatever batch was the last; strides may change from batch to batch."""

    def collated(items: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        xs, ys = (torch.stack(column) for column in zip(*items, strict=True))
        return [xs.T.contiguous().T if float(ys.sum()) > 0 else xs, ys]

    calls = iter([False, False, False, False, True])  # the fourth batch of 20 rows has 2
    monkeypatch.setattr("pyro_scale.choice.Choice.now", lambda self, remaining: next(calls, False))
    loader = DataLoader(TensorDataset(X, Y), batch_size=6, shuffle=True, collate_fn=collated)
    options: dict[str, Any] = {"num_samples": 10, "warmup_steps": 5, "thinning": 2, "num_chains": 2, "seed": 4}
    found = infer(regression, loader, KERNEL, progress=False, **options)
    expected = infer(regression, loader, KERNEL, progress=False, jit_compile=False, **options)
    assert (found.settings["steps_run"], expected.settings["steps_run"]) == ("compiled", "captured")
    for name in expected.draws:
        torch.testing.assert_close(found.draws[name], expected.draws[name], rtol=1e-10, atol=0)


@pytest.mark.parametrize("num_samples", [10, 1000])
def test_a_run_ends_early_where_a_captured_one_does(num_samples: int) -> None:
    """With the same draws, at the same step, by the same words."""
    model = compile_model(counts, COUNTS, batch_size=6)
    plan = Plan(num_samples, 0, 1, 3, ("w",))
    found, expected = (sample(model, SGHMC(step_size=0.9), plan, jit_compile=way) for way in (True, False))
    assert expected.ending is not None and found.ending is not None
    assert found.ending.reason == expected.ending.reason
    assert "is not finite" in found.ending.reason
    assert found.draws["w"].shape == expected.draws["w"].shape
    assert_same(found, expected, tolerance=1e-6)  # errors grow on the way to infinity


def test_a_matrix_that_is_not_positive_definite_ends_the_run() -> None:
    """A decomposition that fails raises where steps are captured; in a native loop it gives NaN."""
    model = compile_model(correlated, {"y": torch.stack([Y, Y + 0.1], 1)})
    plan = Plan(400, 0, 1, 2, ("rho",))
    start = {"rho": torch.tensor([0.1, 0.5], dtype=torch.float64)}
    kernel = SGLD(step_size=0.5)
    found, expected = (run_chains(model, kernel, plan, start, SEEDS, jit_compile=way) for way in (True, False))
    assert expected.ending is not None and found.ending is not None
    assert found.how == "compiled"
    assert found.ending.reason == expected.ending.reason
    assert found.draws["rho"].shape == expected.draws["rho"].shape


def grouped(group: Tensor, y: Tensor) -> None:
    """The gradient adds at indices, which Inductor must not join with what reads the sums."""
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    with pyro.plate("groups", 3):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((3,), 2.0)))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(mean[group] + weights[group], spread), obs=y)


def embedded(group: Tensor, y: Tensor) -> None:
    """The same by an operation that says only when it is taken apart that it adds at indices."""
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0).expand([3, 2]).to_event(2))
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((3,), 2.0)))
    with pyro.plate("data", len(y)):
        location = torch.nn.functional.embedding(group, mean).sum(-1) + weights[0]
        pyro.sample("obs", dist.Normal(location, spread), obs=y)


@pytest.mark.parametrize("model", [grouped, embedded])
def test_gradients_that_add_at_indices(model: Any) -> None:
    """The loops that add are not joined with those that read the sums."""
    group = torch.arange(NUM_ROWS) % 3
    model = compile_model(model, {"group": group, "y": Y}, batch_size=6)
    plan = Plan(50, 0, 2, 2, ("mean", "weights", "spread"))
    found, expected = (sample(model, KERNEL, plan, jit_compile=way) for way in (True, False))
    assert found.how == "compiled"
    assert_same(found, expected)


# What cannot be compiled


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "pyro_scale"]


@pytest.mark.parametrize("jit_compile", [True, "auto"])
def test_without_a_compiler_steps_are_captured(
    jit_compile: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line says so, once; the draws are the same."""
    caplog.set_level(logging.INFO, logger="pyro_scale")
    monkeypatch.setattr("pyro_scale.choice.TRIAL_SECONDS", 1e-9)
    monkeypatch.setattr("pyro_scale.choice.COMPILE_SECONDS", (0.0, 0.0))
    monkeypatch.setattr("pyro_scale.choice.HEADER_SECONDS", 0.0)
    model = compile_model(regression, {"x": X + 1, "y": Y}, batch_size=5)  # of which no code is in the cache
    plan = Plan(20, 0, 20, 2, ("w", "sigma"))
    with config.patch({"cpp.cxx": ("no-such-compiler",)}):
        found = sample(model, KERNEL, plan, jit_compile)
    expected = sample(model, KERNEL, plan, jit_compile=False)
    assert (found.how, found.seconds["compile"] > 0) == ("captured", True)
    (line,) = messages(caplog)
    assert line.startswith("Steps are not compiled, and run captured. InvalidCxxCompiler: No working C++ compiler")
    assert_same(found, expected, tolerance=0)


def test_a_loop_that_takes_other_steps_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="pyro_scale")
    take = Loop.take

    def drifting(self: Loop, state: Any, *arguments: Any) -> Any:
        taken = take(self, state, *arguments)
        state.position["w"] += 1e-6
        return taken

    monkeypatch.setattr(Loop, "take", drifting)
    model = compile_model(regression, DATA, batch_size=6)
    plan = Plan(20, 0, 2, 2, ("w", "sigma"))
    found, expected = (sample(model, KERNEL, plan, jit_compile=way) for way in (True, False))
    assert found.how == "captured"
    assert "The compiled loop takes other steps than the recorded function" in messages(caplog)[0]
    assert_same(found, expected, tolerance=0)


def test_what_is_not_recorded_is_not_compiled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="pyro_scale")
    monkeypatch.setattr(capture, "record", not_recorded)
    found = sample(compile_model(regression, DATA, batch_size=6), KERNEL, Plan(5, 0, 1, 2, ("w",)), jit_compile=True)
    assert found.how == "eager"
    assert "Steps are not compiled, and run eager. Capture failed" in messages(caplog)[-1]


def test_a_graph_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_scale.native.MOST_NODES", 3)
    with pytest.raises(NativeError, match=r"^the graph has \d+ operations, more than 3$"):
        compile_native(lambda x: [x.sin().cos() + 1], [torch.zeros(3)])


# Code of earlier processes


def test_code_of_an_earlier_process_serves_the_same_steps_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other data of the same shapes and other seeds need nothing new; other settings, numbers and lengths do."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    made: list[int] = []
    compiled = native._compiled

    def counted(*arguments: Any) -> Any:
        made.append(1)
        return compiled(*arguments)

    monkeypatch.setattr(native, "_compiled", counted)

    def check(kernel: Any, data: dict[str, Tensor], new: int, batch_size: int | None = 6, chains: int = 2) -> None:
        made.clear()
        model = compile_model(regression, data, batch_size=batch_size)
        plan = Plan(20, 0, 2, chains, ("w", "sigma"))
        found, expected = (sample(model, kernel, plan, jit_compile=way) for way in (True, False))
        assert found.how == "compiled"
        assert_same(found, expected)
        assert len(made) == new

    check(KERNEL, DATA, new=1)
    check(KERNEL, DATA, new=0)
    check(KERNEL, {"x": X.flip(0) * 2, "y": Y + 1}, new=0)
    check(SGHMC(step_size=0.05), DATA, new=0)
    check(SGHMC(step_size=0.1, friction=2.0), DATA, new=1)
    check(KERNEL, DATA, new=1, batch_size=5)
    check(KERNEL, DATA, new=1, chains=3)
    check(KERNEL, {"x": X[:-1], "y": Y[:-1]}, new=1)
    for note in tmp_path.rglob("*.code"):
        note.write_text(str(tmp_path / "removed.so"))
    check(KERNEL, DATA, new=1)


@pytest.mark.parametrize("dtypes", [(torch.float64, torch.float64), (torch.float64, torch.float32)])
def test_code_of_other_constants_is_not_taken(
    dtypes: tuple[torch.dtype, torch.dtype], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Constants whose entries are all equal are written into the code: what tells them apart is their shape."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    for size, dtype in zip((20, 400), dtypes, strict=True):
        held = torch.full((size,), 2.0, dtype=dtype)

        def function(x: Tensor, held: Tensor = held) -> Tensor:
            return (x - held).square().sum()

        x = torch.tensor(0.5, dtype=torch.float64)
        assert torch.allclose(compiled_function(record(function, x), x)(x), function(x))


def test_tensors_that_a_model_holds_tie_no_draw_to_those_before() -> None:
    offset = torch.tensor(0.1, dtype=torch.float64, requires_grad=True) * 2

    def model(x: Tensor, y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(x @ w + offset, 1.0), obs=y)

    compiled = compile_model(model, DATA, batch_size=6)
    found = [sample(compiled, KERNEL, Plan(10, 0, 1, 2, ("w",)), jit_compile=way) for way in (True, False)]
    assert [each.how for each in found] == ["compiled", "captured"]
    assert_same(*found)
    assert not any(each.draws["w"].requires_grad or each.log_posterior.requires_grad for each in found)


@pytest.mark.parametrize("layers", [1, 2])
def test_recurrent_layers_are_compiled(layers: int) -> None:
    """Their kernel in torch returns a workspace of another size than torch's own description of it has."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lstm = nn.LSTM(3, 8, num_layers=layers, batch_first=True)
    weights = {name: weight.detach() for name, weight in lstm.named_parameters()}

    def model(x: Tensor, y: Tensor) -> None:
        sites = {
            name: pyro.sample(name, dist.Normal(weight, 0.1).to_event(weight.ndim)) for name, weight in weights.items()
        }
        with pyro.plate("data", len(x)):
            states, _ = functional_call(lstm, sites, (x,))
            pyro.sample("obs", dist.Normal(states[:, -1, 0], 0.1), obs=y)

    data = {"x": numbers(40, 5, 3, seed=1).float(), "y": numbers(40, seed=2).float()}
    compiled = compile_model(model, data, batch_size=8)
    plan = Plan(10, 20, 3, 1, tuple(weights))
    found, expected = (sample(compiled, KERNEL, plan, jit_compile=way) for way in (True, False))
    assert (found.how, expected.how) == ("compiled", "captured")
    for name in expected.draws:
        torch.testing.assert_close(found.draws[name], expected.draws[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("length", "threads"), [(2**14, False), (2**18, True)])
def test_short_loops_keep_to_one_thread(
    length: int, threads: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    compiled = compile_native(lambda x: [x.sin()], [torch.zeros(length)])
    x = torch.linspace(0, 1, length)
    assert torch.allclose(compiled([x])[0], x.sin())
    code = "".join(path.read_text() for path in tmp_path.rglob("*.cpp"))
    assert "sin" in code
    assert ("omp parallel" in code) == threads
