"""The ArviZ adapter: the same groups, names, types and files under ArviZ 0.23 and 1.x."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import arviz as az
import numpy as np
import pytest
import xarray as xr

from pyro_scale import inference_data, storage
from pyro_scale.errors import FileFormatError

SUFFIXES = [".nc", ".zarr"]
ENGINES = {".nc": {"engine": "h5netcdf"}, ".zarr": {"engine": "zarr", "consolidated": False}}
SAMPLED_GROUPS = [
    "posterior",
    "sample_stats",
    "log_likelihood",
    "posterior_predictive",
    "prior",
    "prior_predictive",
    "warmup_posterior",
    "warmup_sample_stats",
]
DATA_GROUPS = ["observed_data", "constant_data"]
MIXED_ATTRS = {
    "text": "žluť\n",
    "empty": "",
    "flag": True,
    "count": np.int64(3),
    "rate": np.float32(0.5),
    "most": 2**63 - 1,
    "beyond": 2**64,
    "infinite": float("inf"),
    "none": None,
    "numbers": (1, np.int64(2)),
    "array": np.array([0.5, 1.5]),
    "texts": ["a", "b"],
    "one": ["a"],
    "no_items": [],
    "flags": [True, False],
    "mixed": [1, "a"],
    "settings": {"step_size": np.float64(0.1), "sizes": np.arange(2), "deep": {"path": Path("x")}},
}
STORED_ATTRS = {
    "text": "žluť\n",
    "empty": "",
    "flag": 1,
    "count": 3,
    "rate": 0.5,
    "most": 2**63 - 1,
    "beyond": "18446744073709551616",
    "infinite": float("inf"),
    "numbers": [1, 2],
    "array": [0.5, 1.5],
    "texts": ["a", "b"],
    "one": '["a"]',
    "no_items": [],
    "flags": "[true, false]",
    "mixed": '[1, "a"]',
    "settings": '{"step_size": 0.1, "sizes": [0, 1], "deep": {"path": "x"}}',
}


def draws(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(4, 50, *shape))


def example() -> Any:
    groups = {
        "posterior": {
            "w": draws(3),
            "sigma": draws().astype(np.float32),
            "half": draws(2).astype(np.float16),
            "k": draws().astype(np.int32),
            "net/bias": draws(2),
            "nothing": draws(0),
        },
        "sample_stats": {"diverging": draws() > 2, "lp": draws()},
        "log_likelihood": {"y": draws(5)},
        "warmup_posterior": {"w": draws(3)[:, :7]},
        "observed_data": {"y": np.arange(5), "total": np.array(3.5), "mask": np.arange(5) > 2},
        "constant_data": {"label": np.array(["one", "two"]), "missing": np.array([np.nan, 1.0])},
    }
    dims = {"w": ["feature"], "y": ["data"]}
    attrs = {**MIXED_ATTRS, "created_at": "then"}
    return inference_data.build(groups, dims=dims, coords={"feature": ["a", "bc", "d"]}, attrs=attrs)


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    assert set(inference_data.group_names(one)) == set(inference_data.group_names(other))
    assert dict(one.attrs) == dict(other.attrs)
    for group in inference_data.group_names(one):
        a, b = inference_data.dataset(one, group), inference_data.dataset(other, group)
        xr.testing.assert_identical(a, b)
        for name in a.variables:
            assert a[name].dtype == b[name].dtype, name


def posterior(**options: Any) -> xr.Dataset:
    """The posterior group of `build` for one dict of arrays; dims and coords as options."""
    arrays = options.pop("arrays")
    return inference_data.dataset(inference_data.build({"posterior": arrays}, **options), "posterior")


def leftovers(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- what build makes


def test_type_is_that_of_the_installed_arviz() -> None:
    wanted = "DataTree" if int(az.__version__.split(".")[0]) >= 1 else "InferenceData"
    assert type(example()).__name__ == wanted


@pytest.mark.parametrize("group", SAMPLED_GROUPS)
def test_sampled_groups_lead_with_chain_and_draw(group: str) -> None:
    data = inference_data.dataset(inference_data.build({group: {"x": draws(2)}}), group)
    assert data["x"].dims == ("chain", "draw", "x_dim_0")
    assert data.attrs["sample_dims"] == ["chain", "draw"]
    np.testing.assert_array_equal(data["draw"], np.arange(50))


@pytest.mark.parametrize("group", DATA_GROUPS)
def test_data_groups_have_no_sample_dims(group: str) -> None:
    data = inference_data.dataset(inference_data.build({group: {"x": np.ones((2, 3)), "n": np.array(3)}}), group)
    assert data["x"].dims == ("x_dim_0", "x_dim_1")
    assert data["n"].dims == ()
    assert data.attrs["sample_dims"] == []


def test_empty_group_is_left_out() -> None:
    idata = inference_data.build({"posterior": {"x": draws()}, "observed_data": {}})
    assert inference_data.group_names(idata) == ["posterior"]


def test_array_without_chain_and_draw_is_named() -> None:
    with pytest.raises(ValueError, match=r"posterior\['x'\] has shape \(3,\), wanted leading axes \(chain, draw\)"):
        inference_data.build({"posterior": {"x": np.ones(3)}})


def test_dataset_names_the_groups_there_are() -> None:
    with pytest.raises(KeyError, match=r"no group 'prior', there are \['posterior'\]"):
        inference_data.dataset(inference_data.build({"posterior": {"x": draws()}}), "prior")


def test_dataset_is_a_copy() -> None:
    idata = example()
    inference_data.dataset(idata, "posterior").attrs["new"] = 1
    del inference_data.dataset(idata, "posterior")["w"]
    assert "w" in inference_data.dataset(idata, "posterior")
    assert "new" not in inference_data.dataset(idata, "posterior").attrs


def test_flags_stay_boolean_and_boolean_draws_become_integers() -> None:
    groups = {group: {"x": draws() > 0} for group in ("posterior", "prior_predictive", "sample_stats", "constant_data")}
    idata = inference_data.build(groups)
    found = {group: inference_data.dataset(idata, group)["x"].dtype for group in groups}
    assert found == {"posterior": "int8", "prior_predictive": "int8", "sample_stats": "bool", "constant_data": "bool"}
    np.testing.assert_array_equal(inference_data.dataset(idata, "posterior")["x"], draws() > 0)


def test_arrays_are_not_copied() -> None:
    array = draws(3)
    assert np.shares_memory(posterior(arrays={"x": array})["x"].values, array)


# --- names


def test_slash_becomes_colon_everywhere() -> None:
    arrays = {"net/w": draws(2), "net/b": draws(3), "a.b": draws()}
    data = posterior(arrays=arrays, dims={"net/w": ["net/plate"]}, coords={"net/plate": [7, 8]})
    assert data["net:w"].dims == ("chain", "draw", "net:plate")
    assert data["net:b"].dims == ("chain", "draw", "net:b_dim_0")
    assert list(data["net:plate"].values) == [7, 8]
    assert set(data.data_vars) == {"net:w", "net:b", "a.b"}


@pytest.mark.parametrize("order", [1, -1])
def test_no_variable_takes_the_place_of_another(order: int) -> None:
    sites = {"a/b": draws(), "a:b": draws() + 1, "draw": draws() + 2}
    data = posterior(arrays=dict(list(sites.items())[::order]))
    found = {name: float((data[name] - draws()).mean()) for name in data.data_vars}
    assert found == pytest.approx({"a:b_": 0, "a:b": 1, "draw_": 2})


def test_dims_of_log_likelihood_lack_the_event_axes() -> None:
    groups = {"log_likelihood": {"y": draws(5)}, "posterior_predictive": {"y": draws(5, 2)}}
    idata = inference_data.build(groups, dims={"y": ["data", "class"]})
    assert inference_data.dataset(idata, "log_likelihood")["y"].dims == ("chain", "draw", "data")
    assert inference_data.dataset(idata, "posterior_predictive")["y"].dims == ("chain", "draw", "data", "class")


@pytest.mark.parametrize(
    ("shapes", "dims", "coords", "wanted"),
    [
        pytest.param({"x": (2, 3)}, {"x": [None, "k"]}, {}, {"x": ["x_dim_0", "k"]}, id="None"),
        pytest.param({"x": (2, 3)}, {"x": ["k"]}, {}, {"x": ["k", "x_dim_1"]}, id="short"),
        pytest.param({"x": (2, 2)}, {"x": ["k", "k"]}, {}, {"x": ["k", "k_dim"]}, id="twice"),
        pytest.param({"x": (2, 2, 2)}, {"x": ["k", "k", "k"]}, {}, {"x": ["k", "k_dim", "x_dim_2"]}, id="three times"),
        pytest.param({"x": (2,)}, {"x": ["k"]}, {"k": [1, 2, 3]}, {"x": ["k_dim"]}, id="size of coords"),
        pytest.param({"x": (2,), "y": (3,)}, {"x": ["k"], "y": ["k"]}, {}, {"x": ["k"], "y": ["k_dim"]}, id="sizes"),
        pytest.param({"x": (2,), "k": ()}, {"x": ["k"]}, {}, {"x": ["k_dim"], "k": []}, id="named like a site"),
        pytest.param({"x": (2,)}, {"x": ["x"]}, {}, {"x": ["x_dim"]}, id="named like its own site"),
        pytest.param({"x": (2,), "x_dim_0": ()}, {}, {}, {"x": ["x_dim_0_dim"], "x_dim_0": []}, id="default taken"),
        pytest.param({"x": (2,)}, {"x": ["draw"]}, {}, {"x": ["draw_dim"]}, id="named like a sample dim"),
        pytest.param({"x": (2,)}, {"other": ["k"]}, {"unused": [1]}, {"x": ["x_dim_0"]}, id="of no variable"),
        pytest.param({"x": (2,)}, {"x": ["k"]}, {"k": [[1, 2], [3, 4]]}, {"x": ["k_dim"]}, id="labels of two axes"),
    ],
)
def test_dims(shapes: Any, dims: Any, coords: Any, wanted: Any) -> None:
    data = posterior(arrays={name: draws(*shape) for name, shape in shapes.items()}, dims=dims, coords=coords)
    assert {name: list(data[name].dims[2:]) for name in data.data_vars} == wanted
    for dim, size in data.sizes.items():
        assert data[dim].shape == (size,)


def test_a_renamed_dimension_keeps_its_labels() -> None:
    arrays = {"cov": draws(2, 2), "group": draws(3)}
    dims = {"cov": ["feature", "feature"], "group": ["group"]}
    data = posterior(arrays=arrays, dims=dims, coords={"feature": ["a", "b"], "group": ["x", "y", "z"]})
    assert list(data["feature_dim"].values) == ["a", "b"]
    assert list(data["group_dim"].values) == ["x", "y", "z"]


def test_chains_and_draws_can_be_labelled() -> None:
    data = posterior(arrays={"x": draws()}, coords={"chain": [1, 2, 3, 4], "draw": [0, 1]})
    assert list(data["chain"].values) == [1, 2, 3, 4]
    np.testing.assert_array_equal(data["draw"], np.arange(50))


def test_numbers_of_draws_must_agree() -> None:
    with pytest.raises(ValueError, match="draw"):
        inference_data.build({"posterior": {"x": draws(), "y": draws()[:, :7]}})


# --- attributes


def test_attributes_are_on_the_root_and_every_group() -> None:
    idata = inference_data.build(
        {"posterior": {"x": draws()}, "observed_data": {"y": np.ones(2)}}, attrs={"seed": 3, "created_at": "then"}
    )
    for attrs in (
        idata.attrs,
        *(inference_data.dataset(idata, group).attrs for group in ("posterior", "observed_data")),
    ):
        wanted = {"creation_library_language": "Python", "inference_library": "pyro_scale", "seed": 3}
        assert wanted.items() <= attrs.items()
        assert attrs["creation_library"] == "pyro_scale"
        assert attrs["created_at"] == "then"


def test_the_mark_of_our_files_cannot_be_overwritten() -> None:
    data = posterior(arrays={"x": draws()}, attrs={"creation_library": "other"})
    assert data.attrs["creation_library"] == "pyro_scale"
    assert data.attrs["created_at"].endswith("+00:00")


def test_attributes_of_all_kinds() -> None:
    attrs = posterior(arrays={"x": draws()}, attrs=MIXED_ATTRS).attrs
    found = {name: attrs[name] for name in MIXED_ATTRS if name in attrs}
    assert found == STORED_ATTRS
    assert {name: type(value) for name, value in found.items()} == {k: type(v) for k, v in STORED_ATTRS.items()}
    assert json.loads(attrs["settings"])["step_size"] == 0.1


# --- extend


def test_extend_adds_and_replaces_in_place() -> None:
    idata = inference_data.build({"posterior": {"x": draws()}, "prior": {"x": draws()}}, attrs={"seed": 1})
    added = {"prior": {"z": draws(2)}, "warmup_posterior": {"x": draws()}, "observed_data": {"y": np.ones(2)}}
    assert (
        inference_data.extend(idata, added, dims={"y": ["data"]}, coords={"data": [5, 6]}, attrs={"seed": 2}) is idata
    )
    assert set(inference_data.group_names(idata)) == {"posterior", "prior", "warmup_posterior", "observed_data"}
    assert list(inference_data.dataset(idata, "prior").data_vars) == ["z"]
    assert list(inference_data.dataset(idata, "observed_data")["data"].values) == [5, 6]
    assert [inference_data.dataset(idata, group).attrs["seed"] for group in ("posterior", "prior")] == [1, 2]
    inference_data.extend(idata, {"warmup_posterior": {"x": draws() + 1}})
    np.testing.assert_array_equal(inference_data.dataset(idata, "warmup_posterior")["x"], draws() + 1)


# --- ArviZ on the result


def test_arviz_functions() -> None:
    arrays = {"w": draws(2), "flag": draws() > 0, "a/b": draws().astype(np.float32)}
    idata = inference_data.build({"posterior": arrays, "sample_stats": {"diverging": draws() > 2}})
    table = az.summary(idata)
    assert set(table.index) == {"w[0]", "w[1]", "flag", "a:b"}
    assert np.isfinite(table["mean"].astype(float)).all()
    rhat = az.rhat(inference_data.dataset(idata, "posterior"))
    assert abs(float(rhat["a:b"]) - 1) < 0.1


# --- files


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    idata, path = example(), tmp_path / f"posterior{suffix}"
    storage.write(idata, path)
    loaded = storage.read(str(path))
    assert_same(loaded, idata)
    assert {name: loaded.attrs[name] for name in STORED_ATTRS} == STORED_ATTRS
    assert leftovers(tmp_path) == {path.name}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_loaded_file_is_in_memory(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"posterior{suffix}"
    storage.write(example(), path)
    loaded = storage.read(path)
    path.rename(tmp_path / "elsewhere")
    assert_same(loaded, example())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_file_does_not_depend_on_arviz(tmp_path: Path, suffix: str) -> None:
    """Both versions read what is asserted here, with xarray alone; neither is needed for the other's files."""
    path = tmp_path / f"posterior{suffix}"
    storage.write(example(), path)
    with xr.open_datatree(path, **ENGINES[suffix]) as tree:
        assert tree.attrs["creation_library"] == "pyro_scale"
        assert set(tree.children) == set(inference_data.group_names(example()))
        assert not tree.to_dataset().variables
        assert tree["posterior"]["w"].dims == ("chain", "draw", "feature")
        assert list(tree["posterior"]["feature"].values) == ["a", "bc", "d"]
        assert tree["observed_data"]["total"].shape == ()
        assert tree["sample_stats"]["diverging"].dtype == bool


def test_arviz_opens_the_files(tmp_path: Path) -> None:
    storage.write(example(), tmp_path / "a.nc")
    opened = az.from_netcdf(str(tmp_path / "a.nc"))
    np.testing.assert_array_equal(inference_data.dataset(opened, "posterior")["w"], draws(3))
    opened.close()
    if int(az.__version__.split(".")[0]) >= 1:  # 0.23 refuses zarr 3
        storage.write(example(), tmp_path / "a.zarr")
        opened = az.from_zarr(str(tmp_path / "a.zarr"))
        np.testing.assert_array_equal(inference_data.dataset(opened, "posterior")["w"], draws(3))


@pytest.mark.parametrize("first", SUFFIXES)
@pytest.mark.parametrize("second", SUFFIXES)
def test_from_file_to_file(tmp_path: Path, first: str, second: str) -> None:
    idata = example()
    storage.write(idata, tmp_path / f"a{first}")
    loaded = storage.read(tmp_path / f"a{first}")
    inference_data.extend(loaded, {"prior": {"w": draws(3)}})
    storage.write(loaded, tmp_path / f"b{second}")
    assert_same(storage.read(tmp_path / f"b{second}"), loaded)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_attributes_that_users_add_are_made_storable(tmp_path: Path, suffix: str) -> None:
    idata = inference_data.build({"posterior": {"x": draws()}})
    idata["posterior"].attrs.update({"note": None, "good": True, "args": {"a": 1}})
    storage.write(idata, tmp_path / f"a{suffix}")
    attrs = inference_data.dataset(storage.read(tmp_path / f"a{suffix}"), "posterior").attrs
    assert "note" not in attrs
    assert (attrs["good"], attrs["args"]) == (1, '{"a": 1}')


@pytest.mark.parametrize("cleared", ["root", "posterior"])
def test_one_mark_is_enough(tmp_path: Path, cleared: str) -> None:
    idata = inference_data.build({"posterior": {"x": draws()}})
    (idata if cleared == "root" else idata["posterior"]).attrs.clear()
    storage.write(idata, tmp_path / "a.nc")
    assert_same(storage.read(tmp_path / "a.nc"), idata)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_write_replaces_an_older_file(tmp_path: Path, suffix: str) -> None:
    path, new = tmp_path / f"a{suffix}", inference_data.build({"posterior": {"x": draws()}})
    storage.write(example(), path)
    storage.write(new, path)
    assert_same(storage.read(path), new)
    assert leftovers(tmp_path) == {path.name}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_write_goes_through_a_symbolic_link(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / f"link{suffix}"
    link.symlink_to(tmp_path / "real" / f"a{suffix}")
    for _ in range(2):
        storage.write(example(), link)
    assert link.is_symlink()
    assert leftovers(tmp_path / "real") == {f"a{suffix}"}
    assert_same(storage.read(link), example())


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("existing", [False, True])
def test_failure_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, existing: bool) -> None:
    path, old = tmp_path / f"a{suffix}", example()
    if existing:
        storage.write(old, path)
    name = {".nc": "to_netcdf", ".zarr": "to_zarr"}[suffix]
    complete = getattr(xr.DataTree, name)

    def fail(self: xr.DataTree, *args: Any, **kwargs: Any) -> None:
        complete(self, *args, **kwargs)  # so that there is something to leave behind
        raise OSError("disk full")

    monkeypatch.setattr(xr.DataTree, name, fail)
    with pytest.raises(OSError, match="disk full"):
        storage.write(inference_data.build({"posterior": {"x": draws()}}), path)
    assert leftovers(tmp_path) == ({path.name} if existing else set())
    if existing:
        assert_same(storage.read(path), old)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_failure_while_replacing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, error: type[BaseException]
) -> None:
    path, old = tmp_path / f"a{suffix}", example()
    storage.write(old, path)
    replace = os.replace

    def fail(source: Path, target: Path) -> None:
        if Path(source).name == "new":
            raise error("stopped")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(error, match="stopped"):
        storage.write(inference_data.build({"posterior": {"x": draws()}}), path)
    assert leftovers(tmp_path) == {path.name}
    assert_same(storage.read(path), old)


def test_write_needs_its_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder to write 'a\.nc' into") as caught:
        storage.write(example(), tmp_path / "missing" / "a.nc")
    assert str(tmp_path / "missing") in str(caught.value)
    assert leftovers(tmp_path) == set()


def test_write_does_not_delete_other_folders(tmp_path: Path) -> None:
    folder = tmp_path / "thesis.zarr"
    folder.mkdir()
    (folder / "chapter.tex").write_text("x")
    with pytest.raises(FileExistsError, match=r"not a zarr directory: '.*thesis\.zarr'"):
        storage.write(example(), folder)
    assert leftovers(folder) == {"chapter.tex"}


@pytest.mark.parametrize("name", ["a.pkl", "a", "a.nc.gz"])
def test_other_suffixes_are_refused(tmp_path: Path, name: str) -> None:
    suffix = Path(name).suffix
    for call in (lambda path: storage.write(example(), path), storage.read):
        with pytest.raises(FileFormatError, match=rf"suffix '{suffix}', wanted \.nc .* or \.zarr"):
            call(tmp_path / name)
    assert leftovers(tmp_path) == set()


def test_an_old_zarr_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zarr.__version__", "2.18.3")
    for call in (lambda path: storage.write(example(), path), storage.read):
        with pytest.raises(ImportError, match=r"got zarr 2\.18\.3, wanted zarr 3"):
            call(tmp_path / "a.zarr")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_missing_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    with pytest.raises(FileNotFoundError) as caught:
        storage.read(path)
    assert str(path) in str(caught.value)


def by_xarray(path: Path, **attrs: str) -> None:
    tree = xr.DataTree.from_dict({"/posterior": xr.Dataset({"x": ("k", np.ones(2))}, attrs=attrs)})
    if path.suffix == ".nc":
        tree.to_netcdf(path, engine="h5netcdf")
    else:
        tree.to_zarr(path, consolidated=False)


def truncated(path: Path) -> None:
    storage.write(example(), path)
    path.write_bytes(path.read_bytes()[:-1000])


FOREIGN_FILES = {
    "plain.nc": (by_xarray, "got a file with creation_library None"),
    "plain.zarr": (by_xarray, "got a file with creation_library None"),
    "pymc.nc": (lambda path: by_xarray(path, creation_library="PyMC"), "got a file with creation_library 'PyMC'"),
    "text.nc": (lambda path: path.write_text("not netCDF"), "got a file that .* cannot read"),
    "empty.nc": (lambda path: path.write_text(""), "got a file that .* cannot read"),
    "folder.nc": (Path.mkdir, "got a file that .* cannot read"),
    "truncated.nc": (truncated, "got a file that .* cannot read"),
    "empty.zarr": (Path.mkdir, "got a file that .* cannot read"),
    "text.zarr": (lambda path: path.write_text("not zarr"), "got a file that .* cannot read"),
}


@pytest.mark.parametrize("name", FOREIGN_FILES)
def test_files_of_others_are_refused(tmp_path: Path, name: str) -> None:
    make, got = FOREIGN_FILES[name]
    path = tmp_path / name
    make(path)
    opener = "from_zarr" if path.suffix == ".zarr" else "from_netcdf"
    with pytest.raises(FileFormatError, match=f"^{re.escape(str(path))}: {got}") as caught:
        storage.read(path)
    for part in (str(path), "wanted one written by pyro_scale", f"arviz.{opener}"):
        assert part in str(caught.value)


def test_an_unreadable_file_is_not_called_foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError("not yours")

    storage.write(example(), tmp_path / "a.nc")
    monkeypatch.setattr(xr, "open_datatree", refuse)
    with pytest.raises(PermissionError, match="not yours"):
        storage.read(tmp_path / "a.nc")


def test_a_pickle_in_a_zarr_directory_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    # Recent numcodecs refuse to unpickle unless told to; older ones do not.
    monkeypatch.setattr("numcodecs.pickles.Pickle.decode", lambda *_: opened.append("pickle"))
    path = tmp_path / "evil.zarr"
    (path / "posterior" / "x").mkdir(parents=True)
    for folder in (path, path / "posterior"):
        (folder / ".zgroup").write_text('{"zarr_format": 2}')
        (folder / ".zattrs").write_text('{"creation_library": "pyro_scale"}')
    array = {"zarr_format": 2, "shape": [1], "chunks": [1], "dtype": "|O", "fill_value": None, "order": "C"}
    array |= {"compressor": None, "filters": [{"id": "vlen-utf8"}, {"id": "pickle"}]}
    (path / "posterior" / "x" / ".zarray").write_text(json.dumps(array))
    (path / "posterior" / "x" / ".zattrs").write_text('{"_ARRAY_DIMENSIONS": ["k"]}')
    (path / "posterior" / "x" / "0").write_bytes(b"a pickle")
    with pytest.raises(FileFormatError):
        storage.read(path)
    assert not opened
