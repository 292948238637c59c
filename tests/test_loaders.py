"""Batches from a `DataLoader`: every row counts alike, the seed decides the order, and what arrives is checked."""

from __future__ import annotations

import logging
import multiprocessing
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import arviz as az
import pyro
import pyro.distributions as dist
import pytest
import torch
from local_models import schools
from pyro_scale.diagnostics import nuts
from small_models import NUM_ROWS, X, Y, known_variance, numbers, regression
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

import pyro_scale as ps
from pyro_scale import capture, inference_data
from pyro_scale.arriving import Arriving
from pyro_scale.collected import Plan
from pyro_scale.compile import CompiledModel, compile_model
from pyro_scale.errors import ArgumentError, DataError, MinibatchError, PyroScaleError
from pyro_scale.kernels import SGHMC, SGLD
from pyro_scale.sample import Run

LABELS = (X[:, 0] > 0).long()
SHORT: dict[str, Any] = {"num_samples": 3, "warmup_steps": 1, "thinning": 2, "num_chains": 2, "seed": 0}
SHORT["method"] = SGHMC(step_size=SGHMC.default_step_size)  # what runs that are tuned do is in test_held.py
# a machine of one core, and Python from 3.12 on, have something to say about processes
with_workers = pytest.mark.filterwarnings(
    "ignore:This DataLoader will create", "ignore:This process .* is multi-threaded:DeprecationWarning"
)


class Items(Dataset[Any]):
    """Whatever a function makes of the number of an item."""

    def __init__(self, item: Any, size: int = NUM_ROWS) -> None:
        self.item, self.size = item, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        return self.item(index)


class Noisy(Dataset[Any]):
    """Items that are changed at random, by torch's global generator."""

    def __len__(self) -> int:
        return NUM_ROWS

    def __getitem__(self, index: int) -> Any:
        return X[index] + 0.1 * torch.randn(2), Y[index]


def loader(dataset: Any = None, batch_size: Any = 6, shuffle: Any = True, **options: Any) -> DataLoader[Any]:
    dataset = TensorDataset(X, Y) if dataset is None else dataset
    return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle, **options)


def batches_of(compiled: CompiledModel, seed: int, number: int) -> list[Any]:
    arriving = Arriving(compiled, seed)
    arriving.expect(arriving.example, len, lambda batch: len)
    return [arriving.next()[0] for _ in range(number)]


def classifier(x: Tensor, y: Tensor | None = None) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Bernoulli(logits=x @ w), obs=y)


# The estimate


@pytest.mark.parametrize(
    ("batch_size", "lengths"),
    [(6, [6, 6, 6, 2]), (5, [5] * 4), (20, [20]), (50, [20]), (19, [19, 1])],
)
def test_an_epoch_estimates_the_log_posterior_of_all_rows(batch_size: int, lengths: list[int]) -> None:
    compiled = compile_model(regression, loader(batch_size=batch_size))
    whole = compile_model(regression, {"x": X, "y": Y})
    position = whole.initial_position(0)
    expected = float(whole(position, whole.batch()))
    for epoch in range(2):
        batches = batches_of(compiled, epoch, len(lengths))
        assert [len(batch.data["y"]) for batch in batches] == lengths
        assert [batch.scale for batch in batches] == [NUM_ROWS / length for length in lengths]
        assert torch.equal(torch.cat([batch.data["y"] for batch in batches]).sort().values, Y.sort().values)
        weighted = [float(compiled(position, batch)) / batch.scale for batch in batches]
        assert sum(weighted) == pytest.approx(expected, rel=1e-12)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    compiled = compile_model(regression, loader(batch_size=20))
    orders = [batch.data["y"] for seed in (1, 2) for batch in batches_of(compiled, seed, 3)]
    for i, one in enumerate(orders):
        assert all(not torch.equal(one, other) for other in orders[:i])
    assert all(
        torch.equal(one.data["y"], other) for one, other in zip(batches_of(compiled, 1, 3), orders, strict=False)
    )


def test_recorded_steps_are_those_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short batches among them, whose N/n is another."""
    run = ps.infer(regression, loader(batch_size=7), **SHORT)
    assert run.settings["steps_run"] == "captured"

    def unrecorded(*arguments: Any, **options: Any) -> Any:
        raise capture.CaptureError("not now")

    monkeypatch.setattr(capture, "record", unrecorded)
    eager = ps.infer(regression, loader(batch_size=7), **SHORT)
    assert eager.settings["steps_run"] == "eager"
    for name, value in run.draws.items():
        torch.testing.assert_close(value, eager.draws[name], rtol=1e-10, atol=1e-10)


def test_one_step_is_recorded_for_each_length() -> None:
    compiled = compile_model(regression, loader(batch_size=7))
    arriving, recorded = Arriving(compiled, 0), []

    def record(batch: Any) -> Any:
        recorded.append(len(batch.indices))
        return len

    arriving.expect(arriving.example, str, record)
    steps = [arriving.next()[1] for _ in range(9)]
    assert recorded == [6]
    assert steps == [str, str, len] * 3


def test_batches_reach_every_chain() -> None:
    """From equal starts, without noise, equal rows keep chains together."""
    kernel = SGLD(step_size=0.01, temperature=0.0)
    compiled = compile_model(regression, loader())
    plan = Plan(5, 0, 1, 3, ("w", "sigma"))
    start = {name: torch.stack([leaf] * 3) for name, leaf in compiled.initial_position(0).items()}
    chains = ps.sample.run_chains(compiled, kernel, plan, start, (0, 1))
    assert torch.equal(chains.draws["w"][0], chains.draws["w"][2])
    assert not torch.equal(chains.draws["w"][0, 0], chains.draws["w"][0, 4])


def test_the_exact_posterior_is_reached() -> None:
    """Conjugate: mean within 4 Monte Carlo standard errors (one seed in 15 000 fails), sd within 15 %.

    Minibatches widen it by at most 2.3 % at this step size (README), and its standard error is 3 %: 4 of these.
    """
    y = 0.5 + numbers(200, seed=5)
    kernel = SGHMC(step_size=0.03, friction=1.0)
    data = DataLoader(TensorDataset(y), batch_size=64, shuffle=True)  # a short batch of 8 rows in every epoch
    run = ps.infer(known_variance, data, kernel, num_samples=400, warmup_steps=300, thinning=12, num_chains=4, seed=3)
    mean, sd = float(y.sum() / 201), 201**-0.5
    error = (float(run.draws["mu"].mean()) - mean) / float(az.summary(run.idata, round_to="none")["mcse_mean"].iloc[0])
    print(f"{error:.2f} standard errors, sd ratio {float(run.draws['mu'].std()) / sd:.3f}")
    assert abs(error) < 4
    assert float(run.draws["mu"].std()) == pytest.approx(sd, rel=0.15)


# Seeds and workers


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two workers": {"num_workers": 2},
    "persistent": {"num_workers": 2, "persistent_workers": True, "prefetch_factor": 1},
    "drop_last": {"drop_last": True},
}


@with_workers
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_seed_decides(options: dict[str, Any]) -> None:
    """The order, and how items are changed at random.

    And the global generator is neither read nor moved: a rule for every test checks the latter.
    """
    runs = []
    for before in (0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(before)
            runs.append(ps.infer(regression, loader(Noisy(), **options), **SHORT).draws["w"])
    assert torch.equal(*runs)
    other = ps.infer(regression, loader(Noisy(), **options), **{**SHORT, "seed": 1})
    assert not torch.equal(runs[0], other.draws["w"])


@with_workers
def test_workers_change_nothing() -> None:
    expected = ps.infer(regression, loader(), **SHORT).draws["w"]
    assert torch.equal(ps.infer(regression, loader(**OPTIONS["two workers"]), **SHORT).draws["w"], expected)


def test_a_loader_s_own_generator_is_its_user_s() -> None:
    own = torch.Generator().manual_seed(7)
    data = loader(generator=own)
    first, second = (ps.infer(regression, data, **SHORT).draws["w"] for _ in range(2))
    assert not torch.equal(first, second)
    own.manual_seed(7)
    assert torch.equal(ps.infer(regression, data, **SHORT).draws["w"], first)


def stop(progress: Any) -> bool:
    return True


def fail(progress: Any) -> bool:
    raise RuntimeError("of the callback")


def interrupt(progress: Any) -> bool:
    raise KeyboardInterrupt


@with_workers
@pytest.mark.parametrize(
    ("kind", "callback"),
    [
        ("two workers", None),
        ("persistent", None),
        ("two workers", stop),
        ("persistent", fail),
        ("two workers", interrupt),
    ],
)
def test_no_worker_is_left(kind: str, callback: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_scale.progress.CALLBACK_INTERVAL", 0.0)
    data = loader(**OPTIONS[kind])
    try:
        ps.infer(regression, data, callback=callback, **SHORT)
    except (PyroScaleError, RuntimeError, KeyboardInterrupt):
        assert callback is not None
    assert multiprocessing.active_children() == []
    with torch.random.fork_rng():
        assert sum(len(batch[1]) for batch in data) == NUM_ROWS  # it can be used again
    data._iterator = None


@with_workers
@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_the_loader_is_the_user_s(workers: int) -> None:
    with pytest.raises(OSError, match="the disk is gone") as caught:
        ps.infer(regression, loader(collate_fn=only_short_is_broken, num_workers=workers), **{**SHORT, "thinning": 1})
    assert multiprocessing.active_children() == []
    # of three steps one is warm-up, and the last draw waits for the fourth
    assert caught.value.posterior.draws["w"].shape == (2, 1, 2)  # type: ignore[attr-defined]


def only_short_is_broken(batch: Any) -> Any:
    if len(batch) == 2:
        raise OSError("the disk is gone")
    return default_collate(batch)


# What loaders yield


YIELDS: dict[str, Any] = {
    "tuples": Items(lambda i: (X[i], Y[i])),
    "dicts": Items(lambda i: {"y": Y[i], "x": X[i]}),
    "arrays": Items(lambda i: (X[i].numpy(), float(Y[i]))),
    "single precision": Items(lambda i: (X[i].float(), Y[i])),
}


@pytest.mark.parametrize("dataset", YIELDS.values(), ids=YIELDS)
def test_what_it_yields_is_matched_to_arguments(dataset: Any) -> None:
    run = ps.infer(regression, loader(dataset), **SHORT)
    assert run.draws["w"].dtype == torch.float64
    expected = ps.infer(regression, loader(), **SHORT)
    assert torch.allclose(run.draws["w"], expected.draws["w"], rtol=1e-4, atol=1e-4)


def test_single_tensors_constants_and_types() -> None:
    def model(y: Tensor, scale: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, scale))
        with pyro.plate("data", len(y)):
            pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)

    constants = {"scale": torch.tensor(2.0)}
    run = ps.infer(model, loader(Items(lambda i: Y[i])), constants=constants, dtype=torch.float32, **SHORT)
    assert run.draws["mu"].dtype == torch.float32
    assert run.compiled.sites["obs"].argument == "y"
    assert float(inference_data.dataset(run.idata, "constant_data")["scale"]) == 2.0
    assert "observed_data" not in inference_data.group_names(run.idata)


@pytest.mark.parametrize("batch_size", [None, 6])
def test_its_batch_size_may_be_named(batch_size: int | None) -> None:
    assert compile_model(regression, loader(), batch_size=batch_size).batch_size == 6


# What follows a run


def test_new_rows_are_predicted_and_those_of_the_loader_are_not() -> None:
    run = ps.infer(regression, loader(), **SHORT)
    mean = run.draws["w"] @ X[:3].T
    assert torch.allclose(run.predict({"x": X[:3]}).mean["obs"], mean.mean((0, 1)))
    expected = dist.Normal(mean, run.draws["sigma"][..., None]).log_prob(Y[:3])
    assert torch.allclose(run.log_likelihood({"x": X[:3], "y": Y[:3]})["obs"], expected)
    message = "whose rows come batch by batch.*Pass loader.dataset in place of the loader"
    for call in (run.predict, run.log_likelihood, lambda: run.add_groups("prior"), lambda: nuts(regression, loader())):
        with pytest.raises(ArgumentError, match=message):
            call()
    with pytest.raises(ArgumentError, match=message):
        run.compiled.log_posterior(run.compiled.initial_position(0), run.compiled.batch())


def test_saved_and_loaded(tmp_path: Path) -> None:
    run = ps.infer(regression, loader(), **SHORT)
    run.save(tmp_path / "run.nc")
    for data in (loader(), {"x": X, "y": Y}, TensorDataset(X, Y)):
        loaded = ps.load(tmp_path / "run.nc", regression, data)
        assert torch.equal(loaded.predict({"x": X[:3]}).draws["obs"], run.predict({"x": X[:3]}).draws["obs"])
    with pytest.raises(DataError, match="data has 10 rows and the run had 20"):
        ps.load(tmp_path / "run.nc", regression, loader(TensorDataset(X[:10], Y[:10])))


def test_the_state_of_a_run_is_refused() -> None:
    compiled = compile_model(regression, loader())
    start = {name: leaf[None] for name, leaf in compiled.initial_position(0).items()}
    with pytest.raises(ArgumentError, match=r"depends on where its DataLoader stands.*Pass loader.dataset"):
        Run(compiled, SGLD(step_size=0.1), Plan(1, 0, 1, 1, ("w",)), start, (0, 1)).state()


# What goes wrong on the way


def spoiled(change: Any, dataset: Any = None) -> DataLoader[Any]:
    """A loader of shuffled rows whose short batch, the fourth of every epoch, is another."""

    def collate(items: list[Any]) -> Any:
        batch = tuple(default_collate(items))
        return change(*batch) if len(items) == 2 else batch

    return loader(dataset, collate_fn=collate)


def nan_in(x: Tensor, y: Tensor) -> Any:
    return x, y.index_fill(0, torch.tensor(1), float("nan"))


SPOILED: dict[str, tuple[Any, str]] = {
    "fewer parts": (lambda x, y: (x,), "it holds 'x', and the first items 'x', 'y'"),
    "other names": (lambda x, y: {"x": x, "z": y}, "it holds 'x', 'z', and the first items 'x', 'y'"),
    "too many parts": (lambda x, y: (x, y, y), "data holds 3 arrays, but the model takes 2"),
    "None": (lambda x, y: (x, None), r"data\['y'\] is None"),
    "text": (lambda x, y: (x, ["a", "b"]), r"data\['y'\] is a list; it must be a tensor or array"),
    "wide": (lambda x, y: (x[:, [0, 0, 1]], y), r"data\['x'\] has rows of shape \(3,\), and \(2,\) in the first items"),
    "whole numbers": (lambda x, y: (x, y.long()), r"data\['y'\] is torch.int64, and torch.float64 in the first"),
    "boolean": (lambda x, y: (x, y > 0), r"data\['y'\] is torch.bool, and torch.float64 in the first"),
    "NaN": (nan_in, r"data\['y'\] holds NaN in row 1 \(bad rows: 1 of 2\)"),
    "infinity": (lambda x, y: (x / 0, y), r"data\['x'\] holds infinity in row 0|data\['x'\] holds NaN"),
    "rows missing": (
        lambda x, y: (x[:1], y[:1]),
        r"data\['x'\] has 1 rows; the loader's .* 6, the last .* 2",
    ),
    "no rows": (lambda x, y: (x[:0], y[:0]), r"data\['x'\] has 0 rows"),
    "ragged": (lambda x, y: (x, y[:1]), r"data\['y'\] has 1 rows"),
}


@pytest.mark.parametrize(("change", "message"), SPOILED.values(), ids=SPOILED)
def test_a_bad_batch_is_named_and_leaves_the_draws(change: Any, message: str, caplog: Any) -> None:
    """The eighth batch: of the seven steps before it two are warm-up, and the fifth draw waits for the eighth."""
    first = iter([True])

    def second_time(x: Tensor, y: Tensor) -> Any:
        return (x, y) if next(first, False) else change(x, y)

    with pytest.raises(DataError, match=rf"^Batch 8 of the DataLoader: .*{message}") as caught:
        ps.infer(regression, spoiled(second_time), **{**SHORT, "warmup_steps": 2, "thinning": 1, "num_samples": 20})
    print(caught.value)
    assert str(caught.value).endswith("Every batch must be like the first: see the dataset and its collate_fn.")
    assert caught.value.posterior.draws["w"].shape == (2, 4, 2)  # type: ignore[attr-defined]
    assert "The error's `posterior` holds 4 draws a chain" in caplog.text


def test_labels_outside_their_support_are_found_when_they_arrive() -> None:
    data = spoiled(lambda x, y: (x, y + 2), TensorDataset(X, LABELS))
    message = r"Batch 4 of the DataLoader: site 'obs' observes [23].0 at index \[0\], outside the support Boolean\(\)"
    with pytest.raises(DataError, match=message):
        ps.infer(classifier, data, **SHORT)
    with pytest.raises(DataError, match=r"Site 'obs' observes 2.0 at index"):
        compile_model(classifier, loader(TensorDataset(X, LABELS + 2)))


def test_masked_labels_may_be_anything() -> None:
    def model(x: Tensor, y: Tensor, known: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=known):
            pyro.sample("obs", dist.Bernoulli(logits=x @ w), obs=y)

    known = torch.arange(NUM_ROWS) % 3 > 0
    data = TensorDataset(X, LABELS.where(known, -1), known)
    assert ps.infer(model, loader(data), **SHORT).draws["w"].isfinite().all()


# What is refused


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from zip(X, Y, strict=True)


class Uncounted(Dataset[Any]):
    def __getitem__(self, index: int) -> Any:
        return X[index], Y[index]


class Backwards(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(NUM_ROWS - 1, -1, -1))

    def __len__(self) -> int:
        return NUM_ROWS


def own_subsample(x: Tensor, y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), subsample_size=4) as index:
        pyro.sample("obs", dist.Normal(mu, 1.0), obs=y[index])


WHOLE = TensorDataset(X, Y)
REFUSED: dict[str, tuple[Any, Any, type[PyroScaleError], str]] = {
    "iterable": (regression, DataLoader(Stream(), batch_size=6), ArgumentError, "Stream, whose items only come one"),
    "no length": (
        regression, DataLoader(Uncounted(), batch_size=6, sampler=Backwards()), ArgumentError, "Uncounted.*__len__",
    ),
    "batch_sampler": (
        regression, DataLoader(WHOLE, batch_sampler=BatchSampler(SequentialSampler(X), 6, False)), ArgumentError,
        r"batch_sampler of its own.*Use DataLoader\(dataset, batch_size=..., shuffle=True\)",
    ),
    "no batches": (regression, DataLoader(WHOLE, batch_size=None), ArgumentError, "batch_size=None.*neither the size"),
    "weights": (
        regression, DataLoader(WHOLE, batch_size=6, sampler=WeightedRandomSampler([1.0] * NUM_ROWS, NUM_ROWS)),
        ArgumentError, "WeightedRandomSampler: rows must have equal chances.*poutine.scale",
    ),
    "a part": (
        regression, DataLoader(WHOLE, batch_size=6, sampler=SubsetRandomSampler(range(5))), ArgumentError,
        "SubsetRandomSampler: rows must have equal chances.*Use Subset",
    ),
    "empty": (
        regression, DataLoader(TensorDataset(X[:0], Y[:0]), batch_size=6), DataError, "TensorDataset has 0 items",
    ),
    "no whole batch": (
        regression, loader(batch_size=21, drop_last=True), DataError, "yields no batch: 20 items .* batch_size of 21",
    ),
    "unknown name": (
        regression, loader(Items(lambda i: {"x": X[i], "z": Y[i]})), ArgumentError, "'z' is no argument of the model",
    ),
    "three parts": (regression, loader(TensorDataset(X, Y, Y)), ArgumentError, "3 arrays, but the model takes 2"),
    "missing": (own_subsample, loader(TensorDataset(X)), ArgumentError, "argument 'y' is missing"),
    "None": (
        regression, loader(Items(lambda i: (X[i], Y[i])), collate_fn=lambda items: (items[0][0][None], None)),
        DataError, r"data\['y'\] is None",
    ),
    "rows that are no items": (
        regression, loader(collate_fn=lambda items: tuple(part[:1] for part in default_collate(items))), DataError,
        "makes 1 rows of 5 items.*Let every item be one row",
    ),
    "subsample_size": (
        own_subsample, loader(), MinibatchError, "Plate 'data' draws 4 .* a DataLoader, which draws the rows already",
    ),
    "local latents": (
        schools, loader(Items(lambda i: {"sigma": Y[i].exp(), "y": Y[i]})), MinibatchError, "Site 'theta'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("model", "data", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_used_is_refused_before_any_step(model: Any, data: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        ps.infer(model, data, **SHORT)
    print(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("batch_size", [5, 20, 0, "6", 6.5])
def test_another_batch_size_is_refused(batch_size: Any) -> None:
    with pytest.raises(
        ArgumentError, match=rf"batch_size is {batch_size!r}, and the DataLoader's .* 6 rows.*None or 6"
    ):
        ps.infer(regression, loader(), batch_size=batch_size, **SHORT)


def test_rows_that_never_come_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"never yields the last 2 of its 20 rows.*shuffle=True"):
        ps.infer(regression, loader(shuffle=False, drop_last=True), **SHORT)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (loader(shuffle=False), "same order in every epoch.*shuffle=True"),
        (loader(sampler=Backwards(), shuffle=None), "Backwards is taken to give every row the same chance"),
        (loader(), None),
        (loader(batch_size=20, shuffle=False), None),
        (loader(batch_size=19), "1 rows in place of 19 and counts each of them 20 times.*drop_last=True"),
        (loader(batch_size=19, drop_last=True), None),
    ],
    ids=["in order", "own order", "shuffled", "one batch", "one row is left", "and dropped"],
)
def test_an_order_that_biases_is_told_in_one_line(data: Any, message: str | None, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING, "pyro_scale"):
        ps.infer(regression, data, **SHORT)
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == (message is not None)
    if message is not None:
        assert re.search(message, texts[0])
