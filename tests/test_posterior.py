"""What a posterior offers besides predictions: the ArviZ object, groups on request, random draws, files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from model_cases import CASES, DIM, GROUP, GROUPS, LABELS, Case, N, X, Y, groups, normal
from posterior_cases import exact_posterior, posterior_of, regression, spread_posterior
from torch import Tensor
from torch.distributions import constraints

import pyro_scale as ps
from pyro_scale import contents, inference_data, storage
from pyro_scale.compile import compile_model
from pyro_scale.errors import (
    ArgumentError,
    DataError,
    FileFormatError,
    MissingModelError,
    ModelError,
)
from pyro_scale.groups import PRIOR_DRAWS
from pyro_scale.posterior import Posterior

SUFFIXES = [".nc", ".zarr"]
both_formats = pytest.mark.parametrize("suffix", SUFFIXES)


def labelled(x: Tensor, y: Tensor | None = None, *, power: float = 1.0, center: Tensor | None = None) -> None:
    """Integer observations, constants, and a deterministic site."""
    w = pyro.sample("w", normal(x.shape[-1]))
    pyro.deterministic("norm", w.norm())
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Bernoulli(logits=x @ w / power), obs=y)


CENTER = torch.tensor([0.5, 1.5], dtype=torch.float64)


def labelled_posterior(**changed: Any) -> Posterior:
    compiled = compile_model(labelled, {"x": X, "y": LABELS}, constants={"power": 2.0, "center": CENTER}, **changed)
    w = torch.randn(2, 6, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return posterior_of(compiled, {"w": w, "norm": w.norm(dim=-1)})


def group(posterior: Posterior, name: str) -> Any:
    return inference_data.dataset(posterior.idata, name)


def test_idata_holds_the_draws_the_statistics_and_the_data() -> None:
    fitted = labelled_posterior()
    assert set(inference_data.group_names(fitted.idata)) == {
        "posterior", "sample_stats", "observed_data", "constant_data"
    }  # fmt: skip
    for name, value in fitted.draws.items():
        stored = group(fitted, "posterior")[name]
        assert np.array_equal(stored.values, value.numpy())
        assert stored.dims[:2] == ("chain", "draw")
    assert np.array_equal(group(fitted, "sample_stats")["lp"].values, fitted.sample_stats["lp"].numpy())
    observed = group(fitted, "observed_data")["obs"]
    assert observed.dtype == np.int64 and observed.dims == ("data",)
    assert np.array_equal(observed.values, LABELS.numpy())
    constant = group(fitted, "constant_data")
    assert set(constant.data_vars) == {"x", "power", "center"}
    assert constant["x"].dims[0] == "data"
    assert np.array_equal(constant["x"].values, X.numpy())
    assert float(constant["power"]) == 2.0
    assert fitted.idata is fitted.idata
    attributes = group(fitted, "posterior").attrs
    assert attributes["sampling_time"] == 1.5 and attributes["tuning_steps"] == 7


def test_axes_are_named_by_plates() -> None:
    fitted = spread_posterior(groups, {"g": GROUP, "y": Y}, constants={"num_groups": GROUPS})
    stored = group(fitted, "posterior")
    assert stored["effect"].dims == ("chain", "draw", "groups")
    assert stored["rate"].dims == ("chain", "draw", "groups", "rate_dim_1")
    assert stored["tau"].dims == ("chain", "draw")
    assert group(fitted, "constant_data")["g"].dims == ("data",)


def test_what_is_observed_without_an_argument_of_its_own() -> None:
    case = next(case for case in CASES if case.name == "several observed sites")
    fitted = spread_posterior(case.model, case.data)
    observed = group(fitted, "observed_data")
    assert set(observed.data_vars) == {"obs", "label", "count"}
    assert np.array_equal(observed["count"].values, np.asarray(case.data["count"]))
    assert observed["label"].shape == (N,)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # ArviZ, of entries that do not vary
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_model_is_summarised_saved_and_loaded(case: Case, tmp_path: Path) -> None:
    fitted = spread_posterior(case.model, case.data, num_samples=4, constants=case.constants)
    fitted.save(tmp_path / "run.nc")
    loaded = ps.load(tmp_path / "run.nc", case.model, case.data, constants=case.constants)
    assert_same_draws(loaded, fitted)
    assert len(az.summary(fitted.idata)) == sum(int(value[0, 0].numel()) for value in fitted.draws.values())


def test_log_likelihood_group_feeds_loo() -> None:
    fitted = exact_posterior(X, Y, num_samples=250)
    fitted.add_groups("log_likelihood")
    stored = group(fitted, "log_likelihood")["obs"]
    assert stored.dims == ("chain", "draw", "data")
    assert np.array_equal(stored.values, fitted.log_likelihood()["obs"].numpy())
    result = az.loo(fitted.idata)
    elpd = float(getattr(result, "elpd_loo", None) or result.elpd)
    assert elpd == pytest.approx(exact_loo(), abs=0.2)


def exact_loo() -> float:
    """Each row under the regression on the others."""
    total = 0.0
    for row in range(N):
        others = torch.arange(N) != row
        precision = 4 * X[others].T @ X[others] + torch.eye(DIM).double()
        mean = torch.linalg.solve(precision, 4 * X[others].T @ Y[others])
        variance = 0.25 + X[row] @ torch.linalg.solve(precision, X[row])
        total += float(dist.Normal(X[row] @ mean, variance.sqrt()).log_prob(Y[row]))
    return total


def columns_first(y: Tensor) -> None:
    """The rows lie on the second axis of what is observed."""
    mu = pyro.sample("mu", normal(DIM))
    with pyro.plate("columns", DIM, dim=-2), pyro.plate("data", len(y), dim=-1):
        pyro.sample("obs", dist.Normal(mu[:, None], 1.0), obs=y.T)


def test_rows_name_the_axis_of_log_likelihoods_that_are_summed_over_columns() -> None:
    fitted = spread_posterior(columns_first, {"y": X})
    fitted.add_groups("log_likelihood", "posterior_predictive")
    assert group(fitted, "log_likelihood")["obs"].dims == ("chain", "draw", "data")
    assert group(fitted, "posterior_predictive")["obs"].dims == ("chain", "draw", "columns", "data")


def test_predictive_and_prior_groups() -> None:
    fitted = labelled_posterior()
    returned = fitted.add_groups("posterior_predictive", "prior", seed=3)
    assert returned is fitted.idata
    predictive = group(fitted, "posterior_predictive")["obs"]
    assert predictive.dims == ("chain", "draw", "data")
    assert np.array_equal(predictive.values, fitted.predict(seed=3).draws["obs"].numpy())
    prior = group(fitted, "prior")
    assert set(prior.data_vars) == {"w", "norm"}
    assert prior["w"].shape == (1, PRIOR_DRAWS, DIM)
    drawn = prior["w"].values
    # 1500 standard normals: 5 standard errors, 1e-6 to fail
    assert abs(drawn.mean()) < 5 / np.sqrt(drawn.size)
    assert abs(drawn.std() - 1) < 5 / np.sqrt(2 * drawn.size)
    assert np.allclose(prior["norm"].values, np.linalg.norm(drawn, axis=-1))


def prior_of(seed: int) -> Any:
    fitted = labelled_posterior()
    fitted.add_groups("prior", seed=seed)
    return group(fitted, "prior")["w"].values


def test_the_prior_is_reproducible_and_leaves_the_global_generator() -> None:
    before = torch.get_rng_state()
    assert np.array_equal(prior_of(1), prior_of(1))
    assert not np.array_equal(prior_of(1), prior_of(2))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_group_is_replaced_when_it_is_added_again() -> None:
    fitted = labelled_posterior()
    fitted.add_groups("prior", seed=1)
    fitted.add_groups("prior", seed=2)
    assert np.array_equal(group(fitted, "prior")["w"].values, prior_of(2))


def test_the_warm_up_where_it_was_saved() -> None:
    warmup = {"w": torch.ones(2, 4, DIM), "norm": torch.ones(2, 4)}
    base = labelled_posterior()
    fitted = posterior_of(base.compiled, base.draws, warmup=warmup)
    fitted.add_groups("warmup_posterior")
    stored = group(fitted, "warmup_posterior")["w"]
    assert stored.shape == (2, 4, DIM) and stored.dims[:2] == ("chain", "draw")


@both_formats
def test_groups_of_a_file_need_not_be_made_again(suffix: str, tmp_path: Path) -> None:
    base = labelled_posterior()
    fitted = posterior_of(base.compiled, base.draws, warmup={"w": torch.ones(2, 4, DIM), "norm": torch.ones(2, 4)})
    fitted.add_groups("warmup_posterior", "log_likelihood")
    fitted.save(tmp_path / f"run{suffix}")
    constants = {"power": 2.0, "center": CENTER}
    with_model = ps.load(tmp_path / f"run{suffix}", labelled, {"x": X, "y": LABELS}, constants=constants)
    for loaded in (with_model, ps.load(tmp_path / f"run{suffix}")):
        loaded.add_groups("warmup_posterior", "log_likelihood")
        assert np.array_equal(group(loaded, "warmup_posterior")["w"].values, np.ones((2, 4, DIM)))
        assert np.array_equal(
            group(loaded, "log_likelihood")["obs"].values, group(fitted, "log_likelihood")["obs"].values
        )


def test_a_warm_up_that_was_not_saved() -> None:
    with pytest.raises(ArgumentError, match=r"The warm-up was not saved. Run infer\(..., save_warmup=True\)"):
        labelled_posterior().add_groups("warmup_posterior")


def test_unknown_groups_are_refused_before_any_is_added() -> None:
    fitted = labelled_posterior()
    with pytest.raises(ArgumentError, match="no group 'posterior' to add; choose among 'log_likelihood', "):
        fitted.add_groups("prior", "posterior")
    assert "prior" not in inference_data.group_names(fitted.idata)


def test_an_improper_prior_has_no_draws() -> None:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.ImproperUniform(constraints.real, (), ()))
        with pyro.plate("data", len(y)):
            pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)

    with pytest.raises(ArgumentError, match="The prior cannot be drawn from: ImproperUniform"):
        spread_posterior(model, {"y": Y}).add_groups("prior")


def test_draws_at_random_do_not_repeat_while_there_are_enough() -> None:
    fitted = labelled_posterior()
    flat = {name: value.flatten(0, 1) for name, value in fitted.draws.items()}
    chosen = fitted.sample(12, seed=0)
    assert chosen["w"].shape == (12, DIM) and chosen["norm"].shape == (12,)
    assert torch.equal(chosen["norm"].sort().values, flat["norm"].sort().values)
    assert not torch.equal(chosen["norm"], flat["norm"])
    assert torch.equal(chosen["w"].norm(dim=-1), chosen["norm"])  # sites stay together
    few = fitted.sample(5, seed=1)["norm"]
    assert len(few.unique()) == 5 and set(few.tolist()) <= set(flat["norm"].tolist())


def test_draws_at_random_repeat_where_there_are_too_few() -> None:
    many = labelled_posterior().sample(1200, seed=0)["norm"]
    counts = many.unique(return_counts=True)[1]
    assert len(counts) == 12
    # binomial, mean 100 and sd 9.6: 5 sds for each of 12 fail with probability 7e-6
    assert ((counts - 100).abs() < 48).all()


def test_draws_at_random_follow_their_seed() -> None:
    fitted = labelled_posterior()
    before = torch.get_rng_state()
    for n in (6, 30):
        one, again, other = (fitted.sample(n, seed=seed)["norm"] for seed in (1, 1, 2))
        assert torch.equal(one, again)
        assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("n", [0, -1, 1.0, True, None])
def test_an_impossible_number_of_draws(n: Any) -> None:
    with pytest.raises(ArgumentError, match=f"n is {n!r}; it must be a whole number of at least 1"):
        labelled_posterior().sample(n, seed=0)


def test_repr_names_method_size_and_sites() -> None:
    assert repr(labelled_posterior()) == "Posterior(by hand, 2 chains x 6 draws of 'w', 'norm')"


def assert_same_draws(one: Posterior, other: Posterior) -> None:
    assert list(one.draws) == list(other.draws)
    for name, value in other.draws.items():
        assert one.draws[name].dtype == value.dtype
        assert torch.equal(one.draws[name], value)


@both_formats
def test_files_keep_everything_but_the_model(suffix: str, tmp_path: Path) -> None:
    fitted = labelled_posterior()
    fitted.sample_stats["diverging"] = torch.arange(12).reshape(2, 6) % 5 == 0
    path = tmp_path / f"run{suffix}"
    fitted.save(path)
    loaded = ps.load(path)
    assert_same_draws(loaded, fitted)
    for name, value in fitted.sample_stats.items():
        assert loaded.sample_stats[name].dtype == value.dtype
        assert torch.equal(loaded.sample_stats[name], value)
    assert (loaded.num_steps, loaded.step_size, loaded.timing, loaded.settings) == (
        fitted.num_steps, fitted.step_size, fitted.timing, fitted.settings
    )  # fmt: skip
    assert loaded.compiled is None
    assert repr(loaded) == repr(fitted)
    assert torch.equal(loaded.sample(3, seed=0)["w"], fitted.sample(3, seed=0)["w"])
    assert len(az.summary(loaded.idata)) == 4
    assert group(loaded, "observed_data")["obs"].dtype == np.int64


@both_formats
def test_a_loaded_posterior_can_be_saved_again(suffix: str, tmp_path: Path) -> None:
    fitted = labelled_posterior()
    fitted.add_groups("log_likelihood")
    fitted.save(tmp_path / f"one{suffix}")
    ps.load(tmp_path / f"one{suffix}").save(tmp_path / f"two{suffix}")
    constants = {"power": 2.0, "center": CENTER}
    loaded = ps.load(tmp_path / f"two{suffix}", labelled, {"x": X, "y": LABELS}, constants=constants)
    assert_same_draws(loaded, fitted)
    assert "log_likelihood" in inference_data.group_names(loaded.idata)


@both_formats
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool], ids=str
)
def test_every_type_of_draw_comes_back_bit_for_bit(dtype: torch.dtype, suffix: str, tmp_path: Path) -> None:
    base = labelled_posterior()
    values = torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values[0, :3] = torch.tensor([torch.nan, torch.inf, -0.0]) if dtype.is_floating_point else 0
    fitted = posterior_of(base.compiled, {**base.draws, "special": values.to(dtype)})
    fitted.save(tmp_path / f"run{suffix}")
    loaded = ps.load(tmp_path / f"run{suffix}").draws["special"]
    expected = fitted.draws["special"]
    assert loaded.dtype == dtype
    assert torch.allclose(loaded.double(), expected.double(), rtol=0, atol=0, equal_nan=True)
    if dtype.is_floating_point:
        assert torch.equal(loaded.signbit() & ~loaded.isnan(), expected.signbit() & ~expected.isnan())


def slashes(y: Tensor) -> None:
    """Names that files and ArviZ use for other things."""
    names = ["block/w", "block:w", "block/", "chain", "draw", "a.b", "chain_"]
    total = sum(pyro.sample(name, dist.Normal(float(i), 1.0)) for i, name in enumerate(names))
    with pyro.plate("data/rows", len(y)):
        pyro.sample("obs/y", dist.Normal(total, 1.0), obs=y)


@both_formats
def test_names_that_a_file_cannot_hold_come_back(suffix: str, tmp_path: Path) -> None:
    fitted = spread_posterior(slashes, {"y": Y})
    fitted.add_groups("log_likelihood", "posterior_predictive", "prior")
    fitted.save(tmp_path / f"run{suffix}")
    loaded = ps.load(tmp_path / f"run{suffix}", slashes, {"y": Y})
    assert_same_draws(loaded, fitted)
    assert torch.equal(loaded.predict().draws["obs/y"], fitted.predict().draws["obs/y"])
    assert "block:w_" in group(loaded, "posterior").data_vars


@both_formats
def test_a_loaded_posterior_predicts_the_same(suffix: str, tmp_path: Path) -> None:
    fitted = exact_posterior(X, Y, num_samples=10)
    fitted.save(tmp_path / f"run{suffix}")
    loaded = ps.load(tmp_path / f"run{suffix}", regression, {"x": X, "y": Y})
    for data in (None, {"x": X[:4]}, {"x": X[:4], "y": Y[:4]}):
        one, other = loaded.predict(data, seed=5), fitted.predict(data, seed=5)
        assert torch.equal(one.draws["obs"], other.draws["obs"])
        assert torch.equal(one.total["obs"], other.total["obs"])
    assert torch.equal(loaded.log_likelihood()["obs"], fitted.log_likelihood()["obs"])
    loaded.add_groups("log_likelihood")


def test_the_type_of_the_run_is_that_of_the_loaded_model(tmp_path: Path) -> None:
    fitted = spread_posterior(regression, {"x": X, "y": Y}, dtype=torch.float32, batch_size=8)
    fitted.save(tmp_path / "run.nc")
    loaded = ps.load(tmp_path / "run.nc", regression, {"x": X, "y": Y})
    assert loaded.compiled.data.dtype == torch.float32
    assert loaded.compiled.batch_size == 8
    assert torch.equal(loaded.predict().draws["obs"], fitted.predict().draws["obs"])


def test_without_a_model_what_needs_it_says_so(tmp_path: Path) -> None:
    labelled_posterior().save(tmp_path / "run.nc")
    loaded = ps.load(tmp_path / "run.nc")
    for call, name in (
        (loaded.predict, "predict"),
        (loaded.log_likelihood, "log_likelihood"),
        (lambda: loaded.add_groups("prior"), "add_groups"),
    ):
        with pytest.raises(MissingModelError, match=rf"{name} runs the model.*ps.load\(path, model=model, data=data\)"):
            call()


def other_model(x: Tensor, y: Tensor | None = None) -> None:
    v = pyro.sample("v", normal(x.shape[-1]))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(x @ v, 1.0), obs=y)


def test_the_model_and_the_data_must_be_those_of_the_run(tmp_path: Path) -> None:
    path = tmp_path / "run.nc"
    exact_posterior(X, Y, num_samples=4).save(path)
    with pytest.raises(
        ModelError, match=r"not that of the run: latent site 'v' has shape \(3,\), and in the file none"
    ):
        ps.load(path, other_model, {"x": X, "y": Y})
    with pytest.raises(ModelError, match=r"latent site 'w' has shape \(2,\), and in the file \(3,\)"):
        ps.load(path, regression, {"x": X[:, :2], "y": Y})
    with pytest.raises(DataError, match="data has 5 rows and the run had 24"):
        ps.load(path, regression, {"x": X[:5], "y": Y[:5]})
    with pytest.raises(DataError, match="data is empty"):
        ps.load(path, regression)


def changed(value: Tensor, row: int) -> Tensor:
    value = value.clone()
    value[row] = 1 - value[row]
    return value


@both_formats
def test_the_values_of_the_data_must_be_those_of_the_run(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"run{suffix}"
    labelled_posterior().save(path)
    data, constants = {"x": X, "y": LABELS}, {"power": 2.0, "center": CENTER}
    ps.load(path, labelled, (X.numpy(), LABELS.int()), constants={"power": 2, "center": CENTER.numpy()})
    wrong: list[tuple[str, Any, Any]] = [
        (r"'obs' has other values than in the run: . in row 7, and in the file .\. Pass the data",
         data | {"y": changed(LABELS, 7)}, constants),
        (r"'x' has other values than in the run: \S+ in row 3, ", data | {"x": changed(changed(X, 5), 3)}, constants),
        (r"'x' has other values than in the run: \S+ in row 0, .*rows in the same order",
         data | {"x": X.flip(0)}, constants),
        (r"'power' has other values than in the run: 3.0, and in the file 2.0", data, constants | {"power": 3.0}),
        (r"'center' has other values than in the run: 0.0 in row 1, and in the file 1.5",
         data, constants | {"center": CENTER * torch.tensor([1.0, 0.0])}),
        (r"'center' has shape \(1,\), and in the file \(2,\)", data, constants | {"center": CENTER[:1]}),
        ("'center' is in constant_data of the file and was not passed", data, {"power": 2.0}),
    ]  # fmt: skip
    for message, these, those in wrong:
        with pytest.raises(DataError, match=message):
            ps.load(path, labelled, these, constants=those)


def test_data_that_the_run_did_not_have(tmp_path: Path) -> None:
    compiled = compile_model(labelled, {"x": X, "y": LABELS})
    posterior_of(compiled, labelled_posterior().draws).save(tmp_path / "run.nc")
    with pytest.raises(DataError, match="'power' was passed, and constant_data of the file has only 'x'"):
        ps.load(tmp_path / "run.nc", labelled, {"x": X, "y": LABELS}, constants={"power": 1.0})


def test_rounding_of_observations_that_the_model_computes_is_no_other_data(tmp_path: Path) -> None:
    def standardised(offset: float) -> Any:
        def model(y: Tensor) -> None:
            mu = pyro.sample("mu", normal())
            with pyro.plate("data", len(y)):
                pyro.sample("obs", dist.Normal(mu, 1.0), obs=(y - y.mean()) / y.std() + offset)

        return model

    spread_posterior(standardised(0.0), {"y": Y}).save(tmp_path / "run.nc")
    ps.load(tmp_path / "run.nc", standardised(1e-15), {"y": Y})
    with pytest.raises(DataError, match=r"'obs' has other values than in the run: .* in row 0"):
        ps.load(tmp_path / "run.nc", standardised(1e-9), {"y": Y})


def test_too_few_rows_for_the_batches_of_the_run(tmp_path: Path) -> None:
    labelled_posterior(batch_size=8).save(tmp_path / "run.nc")
    with pytest.raises(DataError, match=f"data has 5 rows and the run had {N}"):
        ps.load(tmp_path / "run.nc", labelled, {"x": X[:5], "y": LABELS[:5]}, constants={"power": 2.0})


@pytest.mark.parametrize("path", [None, 3, b"run.nc"])
def test_what_is_no_path(path: Any) -> None:
    for call in (ps.load, labelled_posterior().save):
        with pytest.raises(ArgumentError, match=rf"path is {path!r}; it must be a string or a pathlib.Path"):
            call(path)


def test_a_subset_of_the_sites_is_kept_and_predict_says_what_is_missing(tmp_path: Path) -> None:
    base = labelled_posterior()
    fitted = posterior_of(base.compiled, {"norm": base.draws["norm"]})
    fitted.save(tmp_path / "run.nc")
    constants = {"power": 2.0, "center": CENTER}
    loaded = ps.load(tmp_path / "run.nc", labelled, {"x": X, "y": LABELS}, constants=constants)
    for posterior in (fitted, loaded):
        for call in (posterior.predict, posterior.log_likelihood):
            with pytest.raises(
                MissingModelError, match=r"needs draws of every latent site, and 'w' was not kept.*keep"
            ):
                call()


def write_foreign(path: Path) -> None:
    """As ArviZ or nobody would write it."""
    data = xr.Dataset({"a": (("chain", "draw"), np.ones((2, 5)))})
    tree = xr.DataTree.from_dict({"posterior": data})
    if path.suffix == ".nc":
        tree.to_netcdf(path, engine="h5netcdf")
    else:
        tree.to_zarr(path, zarr_format=3, consolidated=False)


@both_formats
def test_what_is_no_file_of_ours(suffix: str, tmp_path: Path) -> None:
    missing = tmp_path / f"missing{suffix}"
    with pytest.raises(FileNotFoundError):
        ps.load(missing)
    foreign = tmp_path / f"foreign{suffix}"
    write_foreign(foreign)
    with pytest.raises(FileFormatError, match="wanted one written by pyro_scale"):
        ps.load(foreign)


def test_an_arviz_file_without_a_record_of_a_run(tmp_path: Path) -> None:
    made = inference_data.build({"posterior": {"a": np.ones((2, 5))}})
    storage.write(made, tmp_path / "run.nc")
    with pytest.raises(FileFormatError, match="has no record of a run by pyro_scale"):
        ps.load(tmp_path / "run.nc")


def test_a_suffix_that_names_no_format(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"suffix '\.pkl', wanted \.nc .* or \.zarr"):
        labelled_posterior().save(tmp_path / "run.pkl")
    with pytest.raises(FileFormatError, match=r"suffix '\.pt'"):
        ps.load(tmp_path / "run.pt")
    with pytest.raises(FileNotFoundError):
        labelled_posterior().save(tmp_path / "no folder" / "run.nc")
    assert list(tmp_path.iterdir()) == []


@both_formats
def test_an_interrupted_save_leaves_the_old_file(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"run{suffix}"
    old = labelled_posterior()
    old.save(path)

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    new = exact_posterior(X, Y, num_samples=4)
    with monkeypatch.context() as patch:
        # not os.replace itself, which zarr calls on a thread of its own
        patch.setattr(storage, "os", SimpleNamespace(replace=interrupted, path=os.path))
        with pytest.raises(KeyboardInterrupt):
            new.save(path)
    assert_same_draws(ps.load(path), old)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    new.save(path)
    assert_same_draws(ps.load(path), new)


def test_the_record_is_plain_json(tmp_path: Path) -> None:
    fitted = labelled_posterior()
    record = json.loads(json.dumps(contents.record(fitted), allow_nan=False))
    assert record["latent"] == {"w": [DIM]}
    assert record["dtypes"] == {"w": "float64", "norm": "float64"}
    assert json.loads(group(fitted, "posterior").attrs["pyro_scale"]) == record


def test_a_run_is_saved_with_its_kernel(tmp_path: Path) -> None:
    run = ps.infer(
        labelled, {"x": X, "y": LABELS}, constants={"power": 2.0, "center": CENTER}, num_samples=3, num_chains=2,
        thinning=2, batch_size=8, seed=4, save_warmup=True, keep=["norm"], progress=False,
    )  # fmt: skip
    run.add_groups("warmup_posterior")
    run.save(tmp_path / "run.zarr")
    loaded = ps.load(tmp_path / "run.zarr")
    assert_same_draws(loaded, run)
    assert loaded.settings == run.settings
    assert "warmup_posterior" in inference_data.group_names(loaded.idata)
