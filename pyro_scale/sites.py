"""What a Pyro model consists of: its sites, the axes of their values, and the arguments that feed them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pyro_scale.bijections import unconstrained_shape
from pyro_scale.data import Data, Model, arguments_of, names_of
from pyro_scale.enumeration import check_weights, summed_out
from pyro_scale.errors import MinibatchError
from pyro_scale.first_runs import check_density, reference_runs
from pyro_scale.handlers import FromPosition, bijection, run, seeded
from pyro_scale.loaders import INSTEAD, Streamed
from pyro_scale.records import Kind, PyroSite, holds, is_deterministic, kind_of
from pyro_scale.rows import Comparison, RowAxis, check_plates, compare, is_local, local_axis, row_axis, row_dim
from pyro_scale.support import Supported, check_support, known_supports
from pyro_scale.types import Gaussian, Position

LARGE = 2**16
"""Sites of more numbers are not held in an example."""


@dataclass(frozen=True)
class Site:
    """A sample statement of the model.

    Attributes:
        name: its Pyro name.
        kind: latent, enumerated (discrete and latent: summed out), observed, factor or deterministic.
        shape: of its value, for as many rows as the model was compiled with.
        unconstrained_shape: of a latent site's value in R^d; that of the value for other kinds.
        dims: names of the value's axes, from its plates; None where no plate stands for an axis.
        rows: the axis of its log density that follows the rows, if one does.
        local: latent and deterministic sites: whether their value follows the rows; enumerated ones: whether they are
            in the plate of the rows.
        axis: latent sites with a value a row: the axis of that value which follows the rows, from the left.
        summed: deterministic sites: whether they depend on a discrete site, which is summed out, and have no draws.
        argument: observed sites: the model argument that holds their data, if it can be told.
    """

    name: str
    kind: Kind
    shape: torch.Size
    unconstrained_shape: torch.Size
    dims: tuple[str | None, ...]
    rows: RowAxis | None = None
    local: bool = False
    axis: int | None = None
    summed: bool = False
    argument: str | None = None


@dataclass(frozen=True)
class Structure:
    """The sites of a model, and why it cannot be minibatched if it cannot.

    Attributes:
        sites: name -> site, in order of execution.
        position: an example of a position: unconstrained values of the reference run, 0 at large sites.
        row_dim: name of the plate over the rows; "row" without one.
        minibatch_error: None, or what stands in the way of minibatches and its remedy.
        supports: argument -> the support of what observes it, for rows that come later.
        prior: of the position, in place of the model's own and every other term that no row enters; None for these.
    """

    sites: dict[str, Site]
    position: Position
    row_dim: str
    minibatch_error: str | None = None
    supports: dict[str, Supported] = field(default_factory=dict)
    prior: Gaussian | None = None

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
    order = torch.randperm(data.num_data, generator=generator, device="cpu").to(data.device)
    indices = torch.arange(data.num_data, device=data.device) if batch_size is None else order[:batch_size]
    rows = data.rows if batch_size is None else data.take(indices)
    position: Position = {}
    reference, elsewhere = reference_runs(model, data, rows, position, generator)
    check_plates(reference, len(indices), data.num_data)
    supports = known_supports(data, rows, reference, elsewhere)
    check_support(model, data, rows, batch_size, reference, elsewhere, position, supports)
    del elsewhere  # it has as many values as the position
    check_density(model, data, rows, reference, position)
    compared = compare(model, data, reference, position, indices, generator)
    sites = {name: _site(site, compared) for name, site in reference.sites.items()}
    if any(site.kind == "enumerated" for site in sites.values()):
        sites = _with_discrete(sites, model, data, rows, compared, position)
    error = compared.problems[0] if compared.problems else None
    if batch_size is not None and error is not None:
        own = f" Without the subsample_size of plate '{data.plate}', batch_size=None means all rows."
        raise MinibatchError(error + own if data.subsample_size else error)
    if isinstance(data, Streamed):
        _check_no_locals(sites)
    _check_uses_rows(sites, compared, data)
    sites = {name: _with_argument(site, model, data, rows, compared) for name, site in sites.items()}
    example = {name: leaf if leaf.numel() <= LARGE else _zeros(leaf) for name, leaf in position.items()}
    return Structure(sites, example, row_dim(compared), error, supports)


def _zeros(leaf: Tensor) -> Tensor:
    """In the memory of one number."""
    return leaf.new_zeros(()).expand(leaf.shape)


def _site(site: PyroSite, compared: Comparison) -> Site:
    name, kind, shape = site["name"], kind_of(site), site["value"].shape
    dims = _dims(site)
    if kind in ("observed", "factor"):
        return Site(name, kind, shape, shape, dims, rows=row_axis(site, compared))
    if kind == "enumerated":
        plate = row_dim(compared)
        return Site(name, kind, shape, shape, dims, local=any(f.name == plate for f in site["cond_indep_stack"]))
    free = unconstrained_shape(bijection(site), shape) if kind == "latent" else shape
    rows = local_axis(site, compared) if kind == "latent" else None
    local = is_local(site, compared, rows)
    axis = None if rows is None else site["value"].ndim - site["fn"].event_dim + rows.axis
    return Site(name, kind, shape, free, dims, rows=rows, local=local, axis=axis)


def _with_discrete(
    sites: dict[str, Site],
    model: Model,
    data: Data,
    rows: Mapping[str, Tensor],
    compared: Comparison,
    position: Position,
) -> dict[str, Site]:
    """Marks what depends on discrete sites, and finds whether the sum over them stays within the rows."""
    records, size = compared.reference.sites, compared.sizes[0]
    with seeded(3, data.device):
        drawn = run(model, data, rows, FromPosition(position), sample_observed=True).sites
    check_weights(records, size)
    for group in summed_out(records, row_dim(compared), size):
        joined = [name for name in group.names if sites[name].rows is not None]
        if joined and not all(density.ndim for density in group.densities):
            discrete = [name for name, site in sites.items() if site.kind == "enumerated"]
            compared.problems.append(
                f"The sum over the discrete site {names_of(discrete)} joins all rows of site '{joined[0]}': its log "
                "density is the log of a sum, which does not split over rows. Put the discrete site in the plate of "
                "the rows, or use batch_size=None."
            )
    return {
        name: replace(site, summed=site.kind == "deterministic" and drawn[name]["value"].shape != site.shape)
        for name, site in sites.items()
    }


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


def _check_no_locals(sites: Mapping[str, Site]) -> None:
    for site in sites.values():
        if site.kind == "latent" and site.local:
            raise MinibatchError(
                f"Site '{site.name}' has a value for each row, and a DataLoader does not say which rows it yields. "
                + INSTEAD
            )


def _check_uses_rows(sites: Mapping[str, Site], compared: Comparison, data: Data) -> None:
    terms = [site for site in sites.values() if site.kind in ("observed", "factor")]
    if compared.other is None or compared.problems or any(site.rows is not None for site in terms):
        return
    name = terms[0].name
    frames = compared.reference.sites[name]["cond_indep_stack"]
    where = f"in plate '{frames[0].name}' of size {frames[0].size}" if frames else "in no plate"
    if data.plate is not None:
        raise MinibatchError(
            f"Site '{name}' ({where}) does not follow plate '{data.plate}', by whose {data.num_data} indices the rows "
            f"are chosen. {data.remedy}"
        )
    raise MinibatchError(
        f"Site '{name}' ({where}) follows no argument: it is the same whichever rows of {names_of(list(data.rows))} "
        "the model gets. Pass what it observes in data, and take the plate's size from there: plate('data', len(y))."
    )


def _with_argument(site: Site, model: Model, data: Data, rows: Mapping[str, Tensor], compared: Comparison) -> Site:
    """Which argument an observed site gets its data from: the one without which it is none, or equal to them."""
    if site.kind != "observed":
        return site
    for argument, parameter in arguments_of(model).items():
        optional = argument in data.columns and parameter.default is None
        if optional and _unobserved_without(argument, site.name, model, data, rows):
            return replace(site, argument=argument)
    record = compared.reference.sites[site.name]
    twin, others = compared.twin(record), data.columns_at(compared.rows)
    for argument, given in data.columns_at(rows).items():
        # on both runs: in one small batch a column may equal another by chance
        if holds(record, given) and (twin is None or holds(twin, others[argument])):
            return replace(site, argument=argument)
    return site


def _unobserved_without(argument: str, name: str, model: Model, data: Data, rows: Mapping[str, Tensor]) -> bool:
    others = {key: value for key, value in rows.items() if key != argument}
    without = replace(data, constants={key: value for key, value in data.constants.items() if key != argument})
    try:
        with seeded(0, data.device):
            sites = run(model, without, others, FromPosition({}, torch.Generator()), sample_discrete=True).sites
    except Exception:  # the model cannot run without it, whatever it raises: so it is more than an observation
        return False
    return name in sites and not sites[name]["is_observed"]
