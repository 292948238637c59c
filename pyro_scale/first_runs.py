"""The first runs of a model: is it sound, and if it fails, a word on what Pyro's and torch's messages leave open."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.data import Data, Model, arguments_of, names_of
from pyro_scale.derivative import grad_and_value
from pyro_scale.errors import DiscreteSiteError, MinibatchError, ModelError, PyroScaleError
from pyro_scale.handlers import FromPosition, Run, run, seeded
from pyro_scale.records import kind_of, log_prob, same
from pyro_scale.types import Position

ATTEMPTS = 10
LARGE = 2**20
"""The gradient at so many numbers is taken by parts."""
MIXED_TYPES = re.compile("same dtype|scalar type|dtypes match|type .* should be the same")
"""What torch says of them."""


def reference_runs(
    model: Model, data: Data, rows: Mapping[str, Tensor], position: Position, generator: torch.Generator
) -> tuple[Run, Run]:
    """A run at a random position, which `position` receives, and one elsewhere.

    Raises:
        ModelError: no latent or no observed site, sites that come and go, mixed floating types.
        MinibatchError: the model runs on all rows, but not on these.
    """
    with _explained(model, data, rows):
        first = _first_that_runs(model, data, rows, position, generator)
    _check_kinds(first, _unset(model, data), list(data.params))
    with seeded(1, data.device):
        # not validated, like all runs to come: what is masked may lie outside a support
        reference = run(model, data, rows, FromPosition(dict(position), generator))
        elsewhere = run(model, data, rows, FromPosition({}, generator))
    for again in (reference, elsewhere):
        check_sites(first.sites.keys(), again)
    return reference, elsewhere


def _first_that_runs(
    model: Model, data: Data, rows: Mapping[str, Tensor], position: Position, generator: torch.Generator
) -> Run:
    """With validation on; at a few positions, since covariates of any scale may carry one to an infinite rate."""
    for attempt in range(ATTEMPTS):
        position.clear()
        try:
            with seeded(0, data.device):
                return run(model, data, rows, FromPosition(position, generator), validate=True)
        except (RuntimeError, ValueError) as error:
            if attempt == ATTEMPTS - 1 or isinstance(error, PyroScaleError):
                raise
    raise AssertionError("the last attempt returns or raises")


def check_sites(expected: Set[str], found: Run) -> None:
    """Raises `ModelError` unless a run visits the sites that another did."""
    if changed := expected ^ found.sites.keys():
        raise ModelError(
            f"The model draws different sites on different runs: {names_of(sorted(changed))} came or went. Every "
            "run must visit the same sites; use a mask or a mixture in place of a branch."
        )


def check_density(model: Model, data: Data, rows: Mapping[str, Tensor], reference: Run, position: Position) -> None:
    """Raises `ModelError` unless the log density exists, is the same on every run and has a gradient."""
    with _explained(model, data, rows):
        _check_terms(reference)
        with seeded(2, data.device):
            again = run(model, data, rows, FromPosition(position))
    for name, site in reference.sites.items():
        if not same(log_prob(site), log_prob(again.sites[name])):
            raise ModelError(
                f"The log density at site '{name}' changes from run to run with every latent site held: something in "
                "the model is random. Draw it with pyro.sample, or switch it off (dropout: module.eval())."
            )
    _check_gradient(model, data, rows, position)


def _check_gradient(model: Model, data: Data, rows: Mapping[str, Tensor], position: Position) -> None:
    def density(position: Position) -> Tensor:
        sites = run(model, data, rows, FromPosition(position)).sites
        return torch.stack([log_prob(site).sum() for site in sites.values()]).sum()

    try:
        for part in _halves(position):
            with seeded(2, data.device):
                grad_and_value(lambda moving: density(position | moving))(part)
    except RuntimeError as error:
        if "mutate" in str(error):
            raise ModelError(
                "The model changes a tensor that it holds, so that runs depend on the runs before (as batch "
                "normalisation does in training mode: module.eval()). Leave what it holds unchanged."
            ) from error
        raise ModelError(
            f"The model runs, but its log density has no gradient: {str(error).rstrip('.')}. Write the model in torch "
            "operations throughout, without numpy()."
        ) from error


def _halves(position: Position) -> list[Position]:
    """The sites, or where they are large about one half of their numbers after the other.

    A density keeps as many numbers for its gradient as the sites have that it is taken in.
    """
    total = tree.size(position)
    if total <= LARGE:
        return [position]
    parts: list[Position] = [{}, {}]
    for name in sorted(position, key=lambda name: -position[name].numel()):
        min(parts, key=tree.size)[name] = position[name]
    return [part for part in parts if part]


def _check_kinds(reference: Run, hint: str, params: Sequence[str]) -> None:
    kinds = [kind_of(site) for site in reference.sites.values()]
    if "observed" in kinds and "enumerated" in kinds and "latent" not in kinds:
        discrete = [name for name, site in reference.sites.items() if kind_of(site) == "enumerated"]
        raise ModelError(
            f"The latent sites of the model are discrete: {names_of(discrete)}. They are summed out, and nothing is "
            "left to infer. Draw what their distribution depends on with pyro.sample."
        )
    if "latent" not in kinds and "enumerated" not in kinds and params:
        raise ModelError(
            f"The model has no latent site: its parameters {names_of(params)} have no prior. Give them one: "
            "pyro.sample in place of pyro.param; in a PyroModule PyroSample, as in module.weight = PyroSample(prior)."
        )
    if "latent" not in kinds and "enumerated" not in kinds:
        raise ModelError("The model has no latent site: there is nothing to infer. Add a pyro.sample without obs.")
    if "observed" not in kinds and "factor" not in kinds:
        raise ModelError(
            "The model has no observed site: its posterior is its prior. Pass the observations in data, and observe "
            f"them with pyro.sample(..., obs=y). {hint}".strip()
        )


def _check_terms(found: Run) -> None:
    for name, site in found.sites.items():
        try:
            log_prob(site)
        except (RuntimeError, ValueError, IndexError) as error:
            family = type(getattr(site["fn"], "base_dist", site["fn"])).__name__
            raise ModelError(
                f"Site '{name}' observes a value of shape {tuple(site['value'].shape)}, its {family} has shape "
                f"{tuple(site['fn'].shape())}, and the log density fails: {str(error).rstrip('.')}. Give both the "
                "same shape."
            ) from error


@contextmanager
def _explained(model: Model, data: Data, rows: Mapping[str, Tensor]) -> Iterator[None]:
    try:
        yield
    except DiscreteSiteError as error:
        # observations that were forgotten leave a latent site: likelier than a model that has one
        raise DiscreteSiteError(f"{_unset(model, data)} {error}".strip()) from None
    except Exception as error:
        if rows is not data.rows and _runs_on_all(model, data):
            raise MinibatchError(
                f"The model runs on all {data.num_data} rows but not on a batch: {type(error).__name__}: "
                f"{str(error).rstrip('.')}. {data.remedy}"
            ) from error
        if isinstance(error, PyroScaleError):
            raise
        if discrete := _runs_with_one_value(model, data, rows):
            raise DiscreteSiteError(
                f"The model runs with one value of the discrete site {names_of(discrete)}, but not with all values at "
                f"once, along an axis of their own to the left of the plates: {type(error).__name__}: "
                f"{str(error).rstrip('.')}. Write torch.where in place of a branch, and index by the last axes, as in "
                "table[..., z] or by pyro.ops.indexing.Vindex."
            ) from error
        check_end(data, error)
        if "Shape mismatch inside plate" in str(error):
            raise ModelError(
                f"{error}: the plate has another size than what is in it. The model got "
                f"{len(next(iter(rows.values())))} rows of data. {data.remedy}"
            ) from error
        if MIXED_TYPES.search(str(error)):
            whole = [name for name, value in data.columns.items() if not value.is_floating_point()]
            floats = "x.double()" if data.dtype == torch.float64 else "x.float()"
            hint = f" If {names_of(whole)} holds covariates, pass them as floats ({floats})." if whole else ""
            raise ModelError(
                f"The model mixes floating types: {str(error).rstrip('.')}. The data are {data.dtype}.{hint} Convert "
                "what the model holds (module.double()), or pass dtype, as in dtype=torch.float32."
            ) from error
        raise


def check_end(data: Data, error: Exception) -> None:
    """Raises `ModelError` where the plate whose indices choose the rows has more elements than there are rows."""
    if isinstance(error, IndexError) and data.plate is not None:
        raise ModelError(
            f"Plate '{data.plate}' has {data.num_data} elements, and its indices lead beyond the end of something in "
            f"it: IndexError: {str(error).rstrip('.')}. Give it the number of rows: plate('{data.plate}', len(y))."
        ) from error


def _runs_on_all(model: Model, data: Data) -> bool:
    try:
        with seeded(0, data.device):
            found = run(model, data, data.rows, FromPosition({}, torch.Generator()), validate=True)
            _check_terms(found)
    except Exception:  # then the number of rows is not to blame
        return False
    return True


def _runs_with_one_value(model: Model, data: Data, rows: Mapping[str, Tensor]) -> list[str]:
    """The discrete latent sites of a model that runs when each has one value; none if it does not, or has none."""
    try:
        with seeded(0, data.device):
            found = run(model, data, rows, FromPosition({}, torch.Generator()), sample_discrete=True)
            _check_terms(found)
    except Exception:  # then their number of values is not to blame
        return []
    return [name for name, site in found.sites.items() if kind_of(site) == "enumerated"]


def _unset(model: Model, data: Data) -> str:
    """A word on arguments that were left at None: often the observations."""
    defaults = {name: parameter.default for name, parameter in arguments_of(model).items()}
    given = data.rows.keys() | data.constants.keys()
    unset = [name for name, value in defaults.items() if value is None and name not in given]
    return f"The model's {names_of(unset)} is None: pass it in data if it holds observations." if unset else ""
