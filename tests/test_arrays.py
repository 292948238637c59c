"""Data of any make: used where they lie in memory or on disk, read in blocks, never written to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pyro_scale as ps
from pyro_scale import arrays, support
from pyro_scale.compile import compile_model
from pyro_scale.errors import DataError

ROWS, COLUMNS = 4000, 25


def logistic(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([COLUMNS]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Bernoulli(logits=x @ w), obs=y)


def numbers() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.Generator(np.random.PCG64(1))
    x = generator.normal(size=(ROWS, COLUMNS))
    return x, (x[:, 0] > 0).astype(np.int64)


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


def mapped(mode: Any) -> Callable[[np.ndarray, Path], np.ndarray]:
    def make(array: np.ndarray, folder: Path) -> np.ndarray:
        path = folder / f"{array.dtype}{array.ndim}.npy"
        np.save(path, array)
        return np.load(path, mmap_mode=mode)

    return make


def mapped_tensor(array: np.ndarray, folder: Path) -> Tensor:
    path = folder / f"{array.dtype}{array.ndim}.bin"
    array.tofile(path)
    kind = torch.from_numpy(array).dtype
    return torch.from_file(str(path), shared=True, size=array.size, dtype=kind).view(array.shape)


MAKES: dict[str, Callable[[np.ndarray, Path], Any]] = {
    "array": lambda array, folder: array,
    "read-only array": lambda array, folder: read_only(array),
    "every other column": lambda array, folder: np.repeat(array, 2, axis=-1)[..., ::2],
    "memmap, r": mapped("r"),
    "memmap, r+": mapped("r+"),
    "memmap, c": mapped("c"),
    "tensor": lambda array, folder: torch.from_numpy(array),
    "tensor of a file": mapped_tensor,
}
every_make = pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)


def address(value: Any) -> int:
    return int(value.data_ptr() if isinstance(value, Tensor) else value.__array_interface__["data"][0])


@every_make
@pytest.mark.parametrize("floating", [np.float32, np.float64])
@pytest.mark.parametrize("batch_size", [None, 100])
def test_data_are_used_where_they_lie(make: Any, floating: Any, batch_size: int | None, tmp_path: Path) -> None:
    x, y = numbers()
    given = {"x": make(x.astype(floating), tmp_path), "y": make(y, tmp_path)}
    compiled = compile_model(logistic, given, batch_size=batch_size)
    for name, value in given.items():
        used = compiled.data.rows[name]
        assert used.data_ptr() == address(value)
        assert used.stride() == torch.as_tensor(np.asarray(value)).stride()
        assert str(used.dtype).removeprefix("torch.") == str(value.dtype).removeprefix("torch.")


@every_make
def test_runs_on_them_are_those_on_tensors(make: Any, tmp_path: Path) -> None:
    x, y = numbers()
    given = {"x": make(x, tmp_path), "y": make(y, tmp_path)}
    before = {name: np.asarray(value).copy() for name, value in given.items()}
    short: dict[str, Any] = {"num_samples": 3, "thinning": 1, "warmup_steps": 1, "batch_size": 100, "seed": 0}
    run = ps.infer(logistic, given, **short)
    expected = ps.infer(logistic, {"x": torch.tensor(x), "y": torch.tensor(y)}, **short)
    assert torch.equal(run.draws["w"], expected.draws["w"])
    for name, value in given.items():
        assert np.array_equal(np.asarray(value), before[name])


def test_other_types_are_converted_once() -> None:
    """What torch lacks, or another floating type asks for, is a copy; the array itself stays as it is."""
    x, y = numbers()
    flipped = compile_model(logistic, {"x": x[::-1], "y": y[::-1]}, batch_size=100).data.rows
    assert np.array_equal(flipped["x"].numpy(), x[::-1])
    assert not np.shares_memory(flipped["x"].numpy(), x)
    single = compile_model(logistic, {"x": x, "y": y}, batch_size=100, dtype=torch.float32).data.rows
    assert single["x"].dtype == torch.float32 and np.shares_memory(single["y"].numpy(), y)
    record = np.zeros(ROWS, dtype=[("flag", "i1"), ("y", "f8")])  # a field whose stride is no multiple of its size
    record["y"] = y
    assert np.array_equal(arrays.as_rows("y", record["y"]).numpy(), y)


class LargestTensor(TorchDispatchMode):
    """The most numbers in any tensor that an operation makes, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(args) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in given:
                self.size = max(self.size, leaf.numel())
        return result


@pytest.mark.parametrize("make", [MAKES["memmap, r"], MAKES["tensor of a file"]], ids=["memmap", "tensor"])
def test_checks_read_blocks(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor of the size of the data is made: here a list of all rows is the largest."""
    monkeypatch.setattr(arrays, "BLOCK_NUMBERS", 2000)
    monkeypatch.setattr(support, "BLOCK_NUMBERS", 2000)
    x, y = numbers()
    given = {"x": make(x, tmp_path), "y": make(y, tmp_path)}
    with LargestTensor() as largest:
        compiled = compile_model(logistic, given, batch_size=20)
        compiled.batch(torch.arange(20))
    assert 2000 <= largest.size <= ROWS < x.size / 20


@pytest.mark.parametrize("bad", [[0], [ROWS - 1], [7, 2000, 2001]])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bad_rows_are_found_in_every_block(bad: list[int], value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "BLOCK_NUMBERS", 1000)
    x, y = numbers()
    x[bad, -1] = value
    kind = "NaN" if np.isnan(value) else "infinity"
    message = rf"data\['x'\] holds {kind} in row {bad[0]} \(bad rows: {len(bad)} of {ROWS}\)"
    with pytest.raises(DataError, match=message):
        compile_model(logistic, {"x": x, "y": y})


def relabelled(y: Tensor) -> None:
    """Observes another value where the label is 9."""
    rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Poisson(rate), obs=torch.where(y == 9, -1.0, y))


def trials(n: Tensor, y: Tensor) -> None:
    """The support is another for every row."""
    p = pyro.sample("p", dist.Beta(1.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Binomial(n, p), obs=y)


@pytest.mark.parametrize("batch_size", [1, 10, None])
def test_labels_are_checked_as_the_model_observes_them(batch_size: int | None) -> None:
    y, n = torch.ones(ROWS), torch.full((ROWS,), 9.0)
    y[77] = 9
    compile_model(trials, {"n": n, "y": y}, batch_size=batch_size)
    n[77] = 8
    with pytest.raises(DataError, match=r"'obs' observes 9.0 at index \[77\]"):
        compile_model(trials, {"n": n, "y": y}, batch_size=batch_size)
    with pytest.raises(DataError, match=r"'obs' observes -1.0 at index \[77\]"):
        compile_model(relabelled, {"y": y}, batch_size=batch_size)


def test_labels_observed_as_they_are_need_no_run_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: Any) -> Any:
        raise AssertionError("the model runs on all rows")

    def classes(x: Tensor, y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([COLUMNS, 3]).to_event(2))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Categorical(logits=x @ w), obs=y)

    monkeypatch.setattr(support, "run", run)
    x, y = numbers()
    for model, labels in ((logistic, y), (classes, y.astype(np.int64))):
        assert compile_model(model, {"x": x, "y": labels}, batch_size=50).num_data == ROWS


@pytest.mark.parametrize("row", [0, ROWS - 1])
def test_labels_outside_their_support_are_found_in_every_block(row: int, tmp_path: Path) -> None:
    x, y = numbers()
    y[row] = 2
    labels = mapped("r")(y, tmp_path)
    with pytest.raises(DataError, match=rf"'obs' observes 2.0 at index \[{row}\]"):
        compile_model(logistic, {"x": x, "y": labels}, batch_size=50)
