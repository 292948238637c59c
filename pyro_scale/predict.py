"""Posterior predictions by draws: of the observed sites for given rows, and their log-likelihood."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.compile import CompiledModel
from pyro_scale.draws import over_draws
from pyro_scale.errors import MinibatchError, ModelError
from pyro_scale.handlers import FromValues, run, seeded
from pyro_scale.loaders import Streamed
from pyro_scale.other_rows import check_observations
from pyro_scale.prediction import Prediction, axis_of_rows, moments
from pyro_scale.records import PyroSite

BLOCK_ROWS = 2**14
BLOCK_DRAWS = 256
BLOCK_NUMBERS = 2**18
"""At most so many rows and draws are evaluated side by side, and so many draws times rows: a layer of a network has
some hundred numbers for each of them."""


def predictive(
    compiled: CompiledModel,
    draws: Mapping[str, Tensor],
    shape: tuple[int, int],
    *,
    new_rows: bool,
    seed: int,
    keep_draws: bool = True,
) -> Prediction:
    """Predictive distribution at the rows of `compiled`.

    Args:
        compiled: the model on the rows to predict for; observations may be missing.
        draws: latent site -> constrained draws `(num_chains, num_samples, *site)`.
        shape: (num_chains, num_samples).
        new_rows: whether the rows are others than the model was fitted to: latent sites that follow the rows are
            then drawn from their prior given the other sites, as discrete ones always are.
        seed: of the draws.
        keep_draws: whether the draws of the observed sites are kept.

    Raises:
        ModelError: a discrete site is shared by rows, or an observed one is missing.
    """
    _check_discrete(compiled)
    drawn_anew = _drawn_anew(compiled, new_rows)
    values = {name: draws[name] for name in compiled.latent if name not in drawn_anew}
    kept: dict[str, list[Tensor]] = {}
    averages: dict[str, dict[str, list[Tensor]]] = {}
    axes: dict[str, int] = {}
    with seeded(seed, compiled.data.device):
        for on in _by_rows(compiled):
            samples, found = _at_rows(on, values, shape, keep_draws)
            for name, value in samples.items():
                kept.setdefault(name, []).append(value)
            for name, averaged in found.items():
                for moment, value in averaged.items():
                    averages.setdefault(name, {}).setdefault(moment, []).append(value)
            axes = axes or _axes_of_rows(on, values)
    result = Prediction({name: torch.cat(blocks, 2 + axes[name]) for name, blocks in kept.items()})
    for name, parts in averages.items():
        joined = {moment: torch.cat(blocks, axes[name]) for moment, blocks in parts.items()}
        result.describe(name, joined, split=not drawn_anew)
    return result


def conditional_means(
    compiled: CompiledModel, draws: Mapping[str, Tensor], shape: tuple[int, int], *, new_rows: bool
) -> dict[str, Tensor]:
    """Observed site -> its mean given each draw, at the rows of `compiled`: the posterior of a function of the rows.

    Args:
        compiled, draws, shape, new_rows: as of `predictive`.

    Returns:
        `(num_chains, num_samples, n, *event)`; probabilities `(num_chains, num_samples, n, classes)` of a categorical
        site. Sites whose distribution has no closed mean are left out.

    Raises:
        ModelError: latent values of the rows have no draws, so that no mean is known without them.
    """
    if anew := _drawn_anew(compiled, new_rows):
        raise ModelError(
            f"Site '{anew[0]}' has a value for each row that the draws do not hold, as it is discrete or the rows are "
            "new, and the mean is not known without it. Sum it out in the model, or leave data out if it is continuous."
        )
    parts: dict[str, list[Tensor]] = {}
    with seeded(0, compiled.data.device):  # what is drawn is not looked at
        for block in _blocks(compiled, draws, shape[0] * shape[1]):
            found = over_draws(partial(_at_draw, compiled), block, randomness="different")
            for name, each in found.items():
                for mean in (each[key] for key in ("probabilities", "mean") if key in each):
                    parts.setdefault(name, []).append(mean)
    return {name: torch.cat(means).unflatten(0, shape) for name, means in parts.items()}


def _drawn_anew(compiled: CompiledModel, new_rows: bool) -> list[str]:
    """Latent sites whose values for the rows are not among the draws."""
    local = [site.name for site in compiled.structure.of_kind("latent") if new_rows and site.local]
    return local + [site.name for site in compiled.structure.of_kind("enumerated")]


def _axes_of_rows(compiled: CompiledModel, values: Mapping[str, Tensor]) -> dict[str, int]:
    """Observed site -> the axis of its values which follows the rows; 0 where none does, and there is one block."""
    draw = {name: value[0, 0] for name, value in values.items()}
    found = run(compiled.model, compiled.data, compiled.data.rows, FromValues(draw), sample_observed=True).sites
    rows = {site.name: site.rows for site in compiled.structure.of_kind("observed")}
    return {name: 0 if axis is None else axis_of_rows(found[name], axis) for name, axis in rows.items()}


def _at_draw(compiled: CompiledModel, draw: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Observed site -> a value drawn for each row, and moments of its distribution."""
    found = run(compiled.model, compiled.data, compiled.data.rows, FromValues(draw), sample_observed=True).sites
    _check_drawn(compiled, found)
    sites = {site.name: found[site.name] for site in compiled.structure.of_kind("observed")}
    return {name: {"draw": site["value"], **moments(site)} for name, site in sites.items()}


def log_predictive_density(
    compiled: CompiledModel, draws: Mapping[str, Tensor], num_draws: int, *, new_rows: bool
) -> dict[str, Tensor]:
    """Observed site -> log of the mean likelihood of each row over draws, `(n,)`, in nats; arguments as above."""
    values = _for_likelihood(compiled, draws, new_rows)
    parts: dict[str, list[Tensor]] = {}
    for on in _by_rows(compiled):
        sums: dict[str, Tensor] = {}
        for block in _blocks(on, values, num_draws):
            for name, each in over_draws(on.log_likelihood_at, block).items():
                sums[name] = torch.logaddexp(sums[name], each.logsumexp(0)) if name in sums else each.logsumexp(0)
        for name, total in sums.items():
            parts.setdefault(name, []).append(total - math.log(num_draws))
    return {name: torch.cat(found) for name, found in parts.items()}


def _at_rows(
    on: CompiledModel, values: Mapping[str, Tensor], shape: tuple[int, int], keep_draws: bool
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Draws of the observed sites at a block of rows, if they are kept, and averages over draws."""
    averages: dict[str, _Averages] = {}
    samples: dict[str, list[Tensor]] = {}
    for block in _blocks(on, values, shape[0] * shape[1]):
        for name, found in over_draws(partial(_at_draw, on), block, randomness="different").items():
            drawn = found.pop("draw")
            if keep_draws:
                samples.setdefault(name, []).append(drawn)
            averages.setdefault(name, _Averages()).add(found)
    joined = {name: torch.cat(parts).unflatten(0, shape) for name, parts in samples.items()}
    return joined, {name: average.averages() for name, average in averages.items()}


def _by_rows(compiled: CompiledModel) -> Iterator[CompiledModel]:
    """The model on one block of its rows after another, or on all where rows belong together."""
    data = compiled.data
    together = compiled.structure.minibatch_error or compiled.local or data.plate is not None
    if together or isinstance(data, Streamed) or compiled.num_data <= BLOCK_ROWS:
        yield compiled
        return
    for indices in torch.arange(compiled.num_data, device=data.device).split(BLOCK_ROWS):
        yield compiled.on(replace(data, rows=data.take(indices), num_data=len(indices)))


def _blocks(compiled: CompiledModel, draws: Mapping[str, Tensor], num_draws: int) -> Iterator[dict[str, Tensor]]:
    """The draws of all chains, one after another, in blocks that fit into memory."""
    size = min(BLOCK_DRAWS, max(1, BLOCK_NUMBERS // compiled.num_data))
    flat = {name: value.flatten(0, 1) for name, value in draws.items()}
    if not flat:  # every latent site is drawn anew
        flat = {"": torch.zeros(num_draws)}
    for start in range(0, num_draws, size):
        yield tree.map(lambda leaf, start=start: leaf[start : start + size], flat)


def _check_discrete(compiled: CompiledModel) -> None:
    """Raises `ModelError` where what rows have in common is a discrete value, of which the draws say nothing."""
    if shared := [site.name for site in compiled.structure.of_kind("enumerated") if not site.local]:
        raise ModelError(
            f"Site '{shared[0]}' is discrete and not in the plate of the rows: it is summed out, and what the rows of "
            "the fit say of its value is not kept, so that predictions would take no account of it. Use log_likelihood "
            "for the rows of the fit."
        )


def _check_drawn(compiled: CompiledModel, found: Mapping[str, PyroSite]) -> None:
    """Raises `ModelError` unless every observed site was drawn, once for each row."""
    for site in compiled.structure.of_kind("observed"):
        if site.name not in found:
            raise ModelError(
                f"The model has no site '{site.name}' without observations, so it cannot be predicted. Let the model "
                "sample it with obs=None too, or pass observations along with the rows."
            )
        if site.rows is not None and compiled.num_data not in found[site.name]["value"].shape:
            raise ModelError(
                f"Site '{site.name}' is drawn once for all rows: its distribution does not follow them. Put it in the "
                "plate, one value a row: `with pyro.plate('data', len(x)): ...`."
            )


class _Averages:
    """Averages over draws, taken about those of the first block: the spread may be small beside the mean."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: dict[str, Tensor] = {}
        self.center: Tensor | float = 0.0

    def add(self, moments: Mapping[str, Tensor]) -> None:
        """Moments of a block of draws, along their first axis; none where they are not known."""
        values = dict(moments)
        if "mean" in values:
            self.center = values["mean"].mean(0) if self.count == 0 else self.center
            values["mean"] = values["mean"] - self.center
            values["spread"] = values["mean"].square()
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value.sum(0)
        self.count += len(next(iter(values.values()), ()))

    def averages(self) -> dict[str, Tensor]:
        """As `Prediction.describe` takes them."""
        found = {name: value / self.count for name, value in self.sums.items()}
        if "mean" in found:
            found["spread"] = found["spread"] - found["mean"].square()
            found["mean"] = found["mean"] + self.center
        return found


def log_likelihood(compiled: CompiledModel, draws: Mapping[str, Tensor], *, new_rows: bool) -> dict[str, Tensor]:
    """Observed site -> log-likelihood of every row at every draw, `(num_chains, num_samples, n)`, in nats.

    Raises:
        MinibatchError: latent sites follow the rows, so that new rows have no values for them.
        ArgumentError, DataError: new rows lack observations, or have some outside their support.
    """
    values = _for_likelihood(compiled, draws, new_rows)
    num_chains, num_samples = next(iter(values.values())).shape[:2]
    blocks = [
        over_draws(compiled.log_likelihood_at, block) for block in _blocks(compiled, values, num_chains * num_samples)
    ]
    if not blocks[0]:
        raise ModelError("No observed site of the model has a log-likelihood.")
    return {name: torch.cat([b[name] for b in blocks]).unflatten(0, (num_chains, num_samples)) for name in blocks[0]}


def _for_likelihood(compiled: CompiledModel, draws: Mapping[str, Tensor], new_rows: bool) -> dict[str, Tensor]:
    local = [name for name in compiled.latent if compiled.sites[name].local]
    if new_rows and local:
        raise MinibatchError(
            f"Site '{local[0]}' has a value for each row the model was fitted to, and none for other rows, so their "
            "log-likelihood is not known. Call log_likelihood() without data."
        )
    values = {name: draws[name] for name in compiled.latent}
    if new_rows:
        check_observations(compiled, values)
    return values
