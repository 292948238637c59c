"""What a Pyro model consists of: its sites, the axes of their values, and the arguments that feed them."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from pyro_scale.data import Data, Model, arguments_of, names_of
from pyro_scale.errors import DiscreteSiteError, MinibatchError, ModelError, PyroScaleError
from pyro_scale.handlers import FromPosition, Run, bijection, run, seeded
from pyro_scale.records import PyroSite, is_data, is_deterministic, is_factor, log_prob
from pyro_scale.rows import Comparison, RowAxis, check_plates, compare, is_local, row_axis, row_dim, same
from pyro_scale.support import check_support
from pyro_scale.types import Position

Kind = Literal["latent", "observed", "factor", "deterministic"]


@dataclass(frozen=True)
class Site:
    """A sample statement of the model.

    Attributes:
        name: its Pyro name.
        kind: latent, observed, factor or deterministic.
        shape: of its value, for as many rows as the model was compiled with.
        unconstrained_shape: of a latent site's value in R^d; that of the value for other kinds.
        dims: names of the value's axes, from its plates; None where no plate stands for an axis.
        rows: observed sites and factors: the axis of their log density that follows the rows, if one does.
        local: latent and deterministic sites: whether their value follows the rows.
        argument: observed sites: the model argument that holds their data, if it can be told.
    """

    name: str
    kind: Kind
    shape: torch.Size
    unconstrained_shape: torch.Size
    dims: tuple[str | None, ...]
    rows: RowAxis | None = None
    local: bool = False
    argument: str | None = None


@dataclass(frozen=True)
class Structure:
    """The sites of a model, and why it cannot be minibatched if it cannot.

    Attributes:
        sites: name -> site, in order of execution.
        position: unconstrained values of the reference run, an example of a position.
        row_dim: name of the plate over the rows; "row" without one.
        minibatch_error: None, or what stands in the way of minibatches and its remedy.
    """

    sites: dict[str, Site]
    position: Position
    row_dim: str
    minibatch_error: str | None = None

    def of_kind(self, *kinds: Kind) -> list[Site]:
        """Sites of these kinds."""
        return [site for site in self.sites.values() if site.kind in kinds]


def describe(model: Model, data: Data, batch_size: int | None, generator: torch.Generator) -> Structure:
    """Runs the model a few times, on the rows of one batch and of another, and describes its sites.

    Raises:
        ModelError: no latent or no observed site, sites that come and go, a log density that is random.
        MinibatchError: the model cannot be split over rows and `batch_size` asks for it, or uses no row of the data.
        DataError: an observed value outside the support of its distribution.
    """
    order = torch.randperm(data.num_data, generator=generator).to(data.device)
    indices = torch.arange(data.num_data, device=data.device) if batch_size is None else order[:batch_size]
    rows = data.rows if batch_size is None else data.take(indices)
    position: Position = {}
    first = _first_run(model, data, rows, FromPosition(position, generator))
    _check_kinds(first, _unset(model, data))
    check_plates(first, len(indices), data.num_data)
    with seeded(1, data.device):
        # not validated, like all runs to come: what is masked may lie outside a support
        reference = run(model, data, rows, FromPosition(dict(position), generator))
        elsewhere = run(model, data, rows, FromPosition({}, generator))
    for again in (reference, elsewhere):
        check_sites(first.sites.keys(), again)
    check_support(model, data, batch_size, reference, elsewhere, position)
    _check_repeatable(model, data, rows, reference, position)
    compared = compare(model, data, reference, position, indices, generator)
    sites = {name: _site(site, compared) for name, site in reference.sites.items()}
    error = compared.problems[0] if compared.problems else None
    if batch_size is not None and error is not None:
        raise MinibatchError(error)
    _check_uses_rows(sites, compared, data)
    sites = {name: _with_argument(site, model, data, rows, compared) for name, site in sites.items()}
    return Structure(sites, position, row_dim(compared), error)


def kind_of(site: PyroSite) -> Kind:
    """What role a site plays."""
    if is_deterministic(site):
        return "deterministic"
    if is_factor(site):
        return "factor"
    return "observed" if is_data(site) else "latent"


def _first_run(model: Model, data: Data, rows: Mapping[str, Tensor], source: FromPosition) -> Run:
    """With validation on, and with a word on the mistakes that Pyro's and torch's messages do not explain."""
    try:
        with seeded(0, data.device):
            return run(model, data, rows, source, validate=True)
    except DiscreteSiteError as error:
        raise DiscreteSiteError(f"{error}{_unset(model, data)}") from None
    except PyroScaleError:
        raise
    except Exception as error:
        if "dtype" in str(error):
            raise ModelError(
                f"The model mixes floating types: {error}. The data are {data.dtype}. Convert what the model holds "
                "(module.double()), or pass dtype, as in dtype=torch.float32."
            ) from error
        if rows is not data.rows and _runs_on_all(model, data):
            raise MinibatchError(
                f"The model runs on all {data.num_data} rows but not on a batch: {type(error).__name__}: {error}. Take "
                "sizes from the arguments, as in plate('data', len(x)), and pass per-row arrays in data."
            ) from error
        raise


def _runs_on_all(model: Model, data: Data) -> bool:
    try:
        with seeded(0, data.device):
            run(model, data, data.rows, FromPosition({}, torch.Generator()))
    except Exception:  # then the number of rows is not to blame
        return False
    return True


def _unset(model: Model, data: Data) -> str:
    """A word on arguments that were left at None: often the observations."""
    defaults = {name: parameter.default for name, parameter in arguments_of(model).items()}
    unset = [name for name, value in defaults.items() if value is None and name not in {**data.rows, **data.constants}]
    return f" The model's {names_of(unset)} is None: pass it in data if it holds observations." if unset else ""


def _check_kinds(reference: Run, hint: str) -> None:
    kinds = [kind_of(site) for site in reference.sites.values()]
    if "latent" not in kinds:
        raise ModelError("The model has no latent site: there is nothing to infer. Add a pyro.sample without obs.")
    if "observed" not in kinds and "factor" not in kinds:
        raise ModelError(
            "The model has no observed site: its posterior is its prior. Pass the observations in data, and observe "
            f"them with pyro.sample(..., obs=y).{hint}"
        )


def check_sites(expected: Set[str], found: Run) -> None:
    """Raises `ModelError` unless a run visits the sites that another did."""
    if changed := expected ^ found.sites.keys():
        raise ModelError(
            f"The model draws different sites on different runs: {names_of(sorted(changed))} came or went. Every "
            "run must visit the same sites; use a mask or a mixture in place of a branch."
        )


def _check_repeatable(model: Model, data: Data, rows: Mapping[str, Tensor], reference: Run, position: Position) -> None:
    with seeded(2, data.device):
        again = run(model, data, rows, FromPosition(position))
    for name, site in reference.sites.items():
        if not same(log_prob(site), log_prob(again.sites[name])):
            raise ModelError(
                f"The log density at site '{name}' changes from run to run with every latent site held: something in "
                "the model is random. Draw it with pyro.sample, or switch it off (dropout: module.eval())."
            )


def _site(site: PyroSite, compared: Comparison) -> Site:
    name, kind, shape = site["name"], kind_of(site), site["value"].shape
    dims = _dims(site)
    if kind in ("observed", "factor"):
        return Site(name, kind, shape, shape, dims, rows=row_axis(site, compared))
    free = torch.Size(bijection(site).inverse_shape(shape)) if kind == "latent" else shape
    return Site(name, kind, shape, free, dims, local=is_local(site, compared))


def _dims(site: PyroSite) -> tuple[str | None, ...]:
    """Plate names for batch axes, then `infer={"event_dims": [...]}` for event axes, as in NumPyro."""
    value, frames = site["value"], [frame for frame in site["cond_indep_stack"] if frame.vectorized]
    if is_deterministic(site):  # its distribution hides the batch shape
        batch = min(max((-frame.dim for frame in frames), default=0), value.ndim)
    else:
        batch = value.ndim - site["fn"].event_dim
    names: list[str | None] = [None] * value.ndim
    for frame in frames:
        axis = batch + frame.dim
        if 0 <= axis < batch and value.shape[axis] == frame.size:
            names[axis] = frame.name
    event = list((site["infer"] or {}).get("event_dims", ()))[: value.ndim - batch]
    names[batch : batch + len(event)] = event
    return tuple(names)


def _check_uses_rows(sites: Mapping[str, Site], compared: Comparison, data: Data) -> None:
    if compared.other is None or compared.problems or any(site.rows is not None for site in sites.values()):
        return
    name = next(site.name for site in sites.values() if site.kind in ("observed", "factor"))
    frames = compared.reference.sites[name]["cond_indep_stack"]
    where = f"in plate '{frames[0].name}' of size {frames[0].size}" if frames else "in no plate"
    raise MinibatchError(
        f"Site '{name}' ({where}) follows no argument: it is the same whichever rows of {names_of(list(data.rows))} "
        "the model gets. Pass what it observes in data, and take the plate's size from there: plate('data', len(y))."
    )


def _with_argument(site: Site, model: Model, data: Data, rows: Mapping[str, Tensor], compared: Comparison) -> Site:
    """Which argument an observed site gets its data from: the one without which it is none, or equal to them."""
    if site.kind != "observed":
        return site
    for argument, parameter in arguments_of(model).items():
        optional = argument in rows and parameter.default is None
        if optional and _unobserved_without(argument, site.name, model, data, rows):
            return replace(site, argument=argument)
    record = compared.reference.sites[site.name]
    twin = compared.twin(record)
    for argument, given in rows.items():
        # on both runs: in one small batch a column may equal another by chance
        if _holds(record, given) and (twin is None or _holds(twin, compared.rows[argument])):
            return replace(site, argument=argument)
    return site


def _holds(site: PyroSite, given: Tensor) -> bool:
    value = site["value"]
    return given.shape == value.shape and torch.equal(given.to(value.dtype), value)


def _unobserved_without(argument: str, name: str, model: Model, data: Data, rows: Mapping[str, Tensor]) -> bool:
    others = {key: value for key, value in rows.items() if key != argument}
    try:
        with seeded(0, data.device):
            sites = run(model, data, others, FromPosition({}, torch.Generator())).sites
    except DiscreteSiteError as error:  # a discrete observation that is observed no longer
        return f"Site '{name}'" in str(error)
    except Exception:  # the model cannot run without it, whatever it raises: so it is more than an observation
        return False
    return name in sites and not sites[name]["is_observed"]
