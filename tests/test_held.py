"""Tuned runs on a `DataLoader`: the rows that tuning holds, and exact posteriors of what it chooses."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from small_models import NUM_ROWS, numbers, regression
from small_models import X as FEW_X
from small_models import Y as FEW_Y
from test_loaders import Items, Noisy, classifier, fail, interrupt, loader, stop, with_workers
from test_warmup import DATA, exact, linear
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, Subset, TensorDataset, default_collate

import pyro_scale as ps
from pyro_scale.compile import compile_model
from pyro_scale.errors import DataError, PyroScaleError
from pyro_scale.held import Held, in_memory
from pyro_scale.kernels import SGHMC
from pyro_scale.law import law_of, noise_gain
from pyro_scale.orders import epoch_of
from pyro_scale.posterior import Posterior
from pyro_scale.whitening import Whitened

SHORT: dict[str, Any] = {"num_samples": 2, "warmup_steps": 30, "thinning": 1, "num_chains": 2, "progress": False}
"""Too short for a pilot run, which knows of no loader."""
X, Y = DATA["x"], DATA["y"]


def rows(batch_size: int = 40, x: Tensor = X, y: Tensor = Y, **options: Any) -> DataLoader[Any]:
    """Of items, one at a time."""
    return loader(Items(lambda i: (x[i], y[i]), len(y)), batch_size, **options)


def held(data: Any, seed: int = 0) -> Held:
    return in_memory(compile_model(regression, data), seed, lambda: None)


# What is held


KINDS: dict[str, Any] = {
    "tensors": loader(),
    "a part": loader(Subset(TensorDataset(torch.cat([FEW_X, FEW_X]), torch.cat([FEW_Y, FEW_Y])), range(20, 40))),
    "items": rows(6, FEW_X, FEW_Y),
    "dicts, in order": loader(Items(lambda i: {"y": FEW_Y[i], "x": FEW_X[i]}), 7, shuffle=False),
    "one batch": rows(50, FEW_X, FEW_Y),
    "dropped": rows(6, FEW_X, FEW_Y, drop_last=True),
    "single precision": rows(6, FEW_X.float(), FEW_Y),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("data", KINDS.values(), ids=KINDS)
def test_all_rows_are_held_in_order(data: Any) -> None:
    found = held(data)
    assert found.whole and found.compiled.weight == 1
    batch = found.compiled.batch()
    assert torch.equal(batch.data["y"], FEW_Y)
    assert torch.allclose(batch.data["x"], FEW_X, atol=1e-6)
    assert batch.data["x"].dtype == torch.float64
    assert found.compiled.batch_size == found.run.batch_size


@with_workers
def test_workers_read_the_same_rows() -> None:
    found = held(rows(6, FEW_X, FEW_Y, num_workers=2, persistent_workers=True))
    assert torch.equal(found.compiled.batch().data["x"], FEW_X)
    assert multiprocessing.active_children() == []


def test_a_sample_stands_for_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """At random, without repetition; the mean over samples of the log posterior is that of all rows."""
    monkeypatch.setattr("pyro_scale.held.MOST_ROWS", 16)
    data, whole = rows(1, FEW_X, FEW_Y), compile_model(regression, {"x": FEW_X, "y": FEW_Y})
    position = whole.initial_position(0)
    prior, expected = float(whole.log_prior(position)), float(whole(position, whole.batch()))
    values, compiled = [], compile_model(regression, data)
    for seed in range(100):
        found = in_memory(compiled, seed, lambda: None)
        sample = found.compiled.batch()
        assert not found.whole and len(sample.data["y"].unique()) == 16
        by_hand = prior + 20 / 16 * float(whole.log_likelihood(position, sample)["obs"].sum())
        values.append(float(found.compiled(position, sample)))
        assert values[-1] == pytest.approx(by_hand, rel=1e-12)
    error = torch.tensor(values).std() / 10
    assert abs(sum(values) / 100 - expected) < 4 * float(error)  # one in 15 000 fails


def test_a_sample_is_as_large_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_scale.held.MOST_BYTES", 17 * 3 * 8 + 5)
    assert held(rows(1, FEW_X, FEW_Y)).compiled.num_data == 17
    monkeypatch.setattr("pyro_scale.held.LEAST_BATCHES", 3)
    assert held(rows(6, FEW_X, FEW_Y)).compiled.num_data == 18


def test_what_was_chosen_on_a_sample_is_in_units_of_all_rows() -> None:
    """Coordinates are whitened per datum, and V is that of a gradient per datum."""
    whole = compile_model(linear, DATA, batch_size=40)
    mode = ps.mode.find_mode(whole, whole.initial_position(0))
    few = whole.on(whole.data, 4.0)  # as if 400 rows stood for 1600
    frame = ps.gradient.Frame(Whitened(few, mode, 400))
    kernel = SGHMC(step_size=0.1, gradient_variance={"w": torch.full((4,), 0.8).double()})
    chosen, moved = Held(whole, few, False).of_run(kernel, frame)
    expected = Whitened(whole, mode, 1600)
    assert moved.whitened is not None and moved.whitened.target is whole
    assert torch.allclose(moved.whitened.factor, expected.factor)
    assert torch.allclose(moved.whitened.inverse @ moved.whitened.factor, torch.eye(4).double(), atol=1e-9)
    assert torch.allclose(chosen.gradient_variance["w"], torch.tensor(0.2).double())  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("dataset", "collate", "fixed"),
    [
        (Items(lambda i: (FEW_X[i], FEW_Y[i])), default_collate, True),
        (Noisy(), default_collate, False),
        (TensorDataset(FEW_X, FEW_Y), lambda items: mixed(*default_collate(items)), False),
    ],
    ids=["fixed", "items change", "batches change"],
)
def test_rows_that_change_are_found(dataset: Any, collate: Any, fixed: bool, caplog: Any) -> None:
    caplog.set_level(logging.INFO, "pyro_scale")
    assert held(loader(dataset, collate_fn=collate)).whole == fixed
    assert ("items change from one reading to the next: no control variates" in caplog.text) != fixed


def mixed(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x + 0.1 * torch.randn(()), y


# What a run chooses


@pytest.fixture(scope="module")
def tuned() -> Posterior:
    return ps.infer(linear, rows(), num_samples=250, seed=0, progress=False)


def test_a_loader_lands_on_the_exact_posterior_of_unscaled_covariates(tuned: Posterior) -> None:
    """Of 1000 draws: within 3.5 standard errors of means and sds."""
    mean, sd = exact()
    flat = tuned.draws["w"].flatten(0, 1)
    print(((flat.mean(0) - mean) / sd).tolist(), (flat.std(0) / sd).tolist())
    assert float(((flat.mean(0) - mean) / sd).abs().max()) < 0.11
    assert torch.allclose(flat.std(0) / sd, torch.ones(4, dtype=torch.float64), atol=0.08)
    assert tuned.health, tuned.health


def test_it_is_tuned_as_the_same_tensors_are(tuned: Posterior) -> None:
    tensors = ps.infer(linear, DATA, batch_size=40, num_samples=2, seed=0, progress=False)
    assert tuned.settings["tuning"] == tensors.settings["tuning"]
    assert tuned.step_size == tensors.step_size


def test_the_run_does_not_hold_the_rows_of_its_tuning(tuned: Posterior) -> None:
    assert tuned.compiled is not None
    with pytest.raises(PyroScaleError, match="whose rows come batch by batch"):
        tuned.compiled.batch()


@pytest.mark.parametrize(("jit_compile", "vectorised"), [(True, True), (False, True), (False, False)])
def test_anchors_of_the_chains_reach_shared_batches(jit_compile: bool, vectorised: bool) -> None:
    """Chains in two modes, with a short batch of 4 rows: a wrong anchor would leave a hundred times the noise."""

    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        scale = 1.0 if vectorised or float(mu.detach()) < 1e9 else 2.0
        with pyro.plate("data", len(y)):
            pyro.sample("obs", dist.Normal(mu.abs(), scale), obs=y)

    y = 3 + numbers(64, seed=3)
    data = loader(Items(lambda i: y[i], 64), 10)
    options: dict[str, Any] = {"num_samples": 40, "thinning": 1, "warmup_steps": 40, "progress": False, "seed": 1}
    run = ps.infer(model, data, num_chains=4, jit_compile=jit_compile, **options)
    draws = run.draws["mu"]
    assert run.settings["tuning"]["modes"] == 2 and run.settings["tuning"]["control_variates"]
    assert set(draws[:, 0].sign().tolist()) == {-1.0, 1.0}
    # quadratic: control variates leave no noise at all, and chains of equal noise differ by their sign alone
    assert run.settings["tuning"]["gradient_noise"] < 1e-9
    assert ((draws.abs() - y.sum() / 64.01) * 64.01**0.5).square().mean() < 2.5


def test_one_chain_in_native_code_has_its_anchor_too() -> None:
    """It is stepped without an axis of chains, and by batches of two lengths."""
    data, options = rows(150), {**SHORT, "num_samples": 8, "num_chains": 1}
    native, captured = (ps.infer(linear, data, seed=0, jit_compile=jit, **options) for jit in (True, False))
    assert native.settings["steps_run"] == "compiled"
    assert native.settings["tuning"]["control_variates"]
    assert torch.allclose(native.draws["w"], captured.draws["w"], rtol=1e-8)


def test_a_sample_lands_on_the_exact_posterior(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without control variates, from rows of which two in five are held."""
    monkeypatch.setattr("pyro_scale.held.MOST_ROWS", 800)
    monkeypatch.setattr("pyro_scale.held.LEAST_BATCHES", 4)
    y = 0.5 + numbers(2000, seed=5)
    data = loader(TensorDataset(y), 200, collate_fn=lambda items: torch.stack([item[0] for item in items]))
    options: dict[str, Any] = {"num_samples": 60, "num_chains": 16, "seed": 0, "progress": False}
    run = ps.infer(known, data, **options)
    draws, sd = run.draws["mu"], 2001**-0.5
    error, ratio = float(draws.mean() - y.sum() / 2001) / sd, float(draws.std()) / sd
    print(error, ratio, run.settings["tuning"], run.step_size, run.settings["thinning"])
    assert not run.settings["tuning"]["control_variates"]
    assert abs(error) < 0.15
    assert ratio == pytest.approx(1, abs=0.1)


def known(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)


# Seeds, and what ends a run


@with_workers
@pytest.mark.parametrize("options", [{}, {"num_workers": 2}], ids=["plain", "two workers"])
def test_the_seed_decides(options: dict[str, Any]) -> None:
    """What is read for tuning is changed at random by the seed too, whatever the global generator holds."""
    found = []
    for before, seed in ((0, 0), (1, 0), (0, 1)):
        with torch.random.fork_rng():
            torch.manual_seed(before)
            found.append(ps.infer(regression, loader(Noisy(), **options), seed=seed, **SHORT).draws["w"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_loader_s_own_generator_is_left_to_its_batches() -> None:
    own = torch.Generator().manual_seed(7)
    data = rows(6, FEW_X, FEW_Y, generator=own)
    before = own.get_state()
    held(data)
    assert torch.equal(own.get_state(), before)


@with_workers
@pytest.mark.parametrize("callback", [stop, fail, interrupt])
def test_what_ends_the_reading_ends_its_workers(callback: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_scale.progress.CALLBACK_INTERVAL", 0.0)
    with pytest.raises((PyroScaleError, RuntimeError, KeyboardInterrupt), match=r"while modes were sought|callback|^$"):
        ps.infer(regression, rows(6, FEW_X, FEW_Y, num_workers=2), callback=callback, seed=0, **SHORT)
    assert multiprocessing.active_children() == []


def test_interrupting_the_pilot_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_scale.sample.Run.advance", lambda run, reporter: interrupt(None))
    with pytest.raises(KeyboardInterrupt) as caught:
        ps.infer(regression, rows(6, FEW_X, FEW_Y), seed=0, **{**SHORT, "warmup_steps": 200})
    assert any(entry.name == "explore" for entry in caught.traceback)


BAD: dict[str, tuple[Any, Any, str]] = {
    "rows of another shape": (
        linear, lambda i: (X[i, [0, 0, 1]] if i >= 395 else X[i], Y[i]),
        r"^Items 395 to 399 of the dataset: data\['x'\] has rows of shape \(3,\), and \(4,\) in the first items",
    ),
    "NaN": (
        linear, lambda i: (X[i], Y[i] * torch.nan if i == 393 else Y[i]),
        r"^Items 390 to 394 of the dataset: data\['y'\] holds NaN in row 3",
    ),
    "a label": (
        classifier, lambda i: (X[i, :2], torch.tensor(2 * (i == 391))),
        r"^Items 390 to 394 of the dataset: site 'obs' observes 2.0 at index \[1\], outside the support Boolean\(\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("model", "item", "message"), BAD.values(), ids=BAD)
def test_a_bad_item_is_named_before_any_step(model: Any, item: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        ps.infer(model, loader(Items(item, 400), 5), seed=0, **SHORT)
    print(caught.value)


def test_a_bad_label_among_tensors_is_named_before_any_step() -> None:
    labels = (FEW_X[:, 0] > 0).double()
    labels[15] = 3.0
    with pytest.raises(DataError, match=r"observes 3.0 at index \[15\]"):
        ps.infer(classifier, loader(TensorDataset(FEW_X, labels)), seed=0, **SHORT)


def test_an_error_of_the_dataset_is_the_user_s() -> None:
    def item(i: int) -> Any:
        if i == 399:
            raise OSError("the disk is gone")
        return X[i], Y[i]

    with pytest.raises(OSError, match="the disk is gone"):
        ps.infer(linear, loader(Items(item, 400)), seed=0, **SHORT)


class Doubled(DataLoader[Any]):
    def __iter__(self) -> Any:
        for x, y in super().__iter__():
            yield 2 * x, y


def test_a_loader_that_changes_its_batches_is_not_tuned(caplog: Any) -> None:
    caplog.set_level(logging.INFO, "pyro_scale")
    data = Doubled(TensorDataset(FEW_X, FEW_Y), batch_size=6, shuffle=True)
    run = ps.infer(regression, data, seed=0, **SHORT)
    assert run.settings["tuning"] == {}
    assert "not tuned, and takes the kernel's default step size: Doubled iterates in a way of its own" in caplog.text


# Batches that are uneven


def orders(number: int, data: DataLoader[Any]) -> Iterator[Tensor]:
    """Means of the batches of so many epochs."""
    values = numbers(NUM_ROWS, seed=9)
    values = values - values.mean()
    for _ in range(number):
        yield torch.stack([values[batch[0]].mean() for batch in data])


UNEVEN: dict[str, Any] = {
    "equal": {"batch_size": 5},
    "a short one": {"batch_size": 6},
    "one row": {"batch_size": 19},
    "dropped": {"batch_size": 6, "drop_last": True},
    "replacement": {"batch_size": 5, "sampler": RandomSampler(range(NUM_ROWS), replacement=True)},
    "half": {"batch_size": 5, "sampler": RandomSampler(range(NUM_ROWS), num_samples=10)},
}


@pytest.mark.parametrize("options", UNEVEN.values(), ids=UNEVEN)
def test_what_noise_an_epoch_leaves(options: dict[str, Any]) -> None:
    """Variance of the sum over an epoch: that of `epoch_of`, within 4 standard errors of 1500 epochs (15 %)."""
    data = DataLoader(
        TensorDataset(torch.arange(NUM_ROWS)), generator=torch.Generator().manual_seed(0),
        **({"shuffle": True} if "sampler" not in options else {}), **options,
    )  # fmt: skip
    size, values = options["batch_size"], numbers(NUM_ROWS, seed=9)
    one = float(values.var()) * (1 / size - 1 / NUM_ROWS)  # of a minibatch without repetition
    batches, uneven = epoch_of(data)
    if "sampler" in options:
        options["sampler"].generator = torch.Generator().manual_seed(1)
    sums = torch.stack([means.sum() for means in orders(1500, data)])
    expected = one * len(data) * (uneven + (batches == torch.inf))
    print(batches, uneven, float(sums.var()), expected)
    assert float(sums.var()) == pytest.approx(expected, rel=0.15, abs=1e-12)


def test_uneven_batches_add_to_what_noise_is_gained() -> None:
    response = law_of(SGHMC(), 0.2).response
    for batches in (7.0, torch.inf):
        more = noise_gain(response, batches, 0.3) - noise_gain(response, batches)
        assert more == pytest.approx(0.3 * noise_gain(response, torch.inf))
