"""Posterior predictions: draws of the observed sites for given rows, their moments, and uncertainty split in two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.compile import CompiledModel
from pyro_scale.draws import over_draws
from pyro_scale.errors import MinibatchError, ModelError
from pyro_scale.handlers import FromValues, run, seeded
from pyro_scale.other_rows import check_observations
from pyro_scale.records import PyroSite
from pyro_scale.split import of_entropies, of_variances

BLOCK_DRAWS = 256
BLOCK_NUMBERS = 2**22
"""At most so many draws are evaluated side by side, and so many draws times rows."""


@dataclass(frozen=True)
class Prediction:
    """The posterior predictive distribution of the observed sites at n rows.

    Every field maps an observed site to a tensor. The split follows Depeweg et al. (2018), section 3: `total` is
    `aleatoric` (noise that data of this kind keep, however well the parameters are known) plus `epistemic` (what more
    data would remove). For Bernoulli and categorical sites these are entropies and mutual information, in nats;
    for others variances, in squared units of the site.

    Attributes:
        draws: one draw of the site for each posterior draw, `(num_chains, num_samples, n, *event)`.
        mean: mean of the predictive distribution, `(n, *event)`; class probabilities `(n, classes)` if categorical.
        sd: its standard deviation, `(n, *event)`; not given for categorical sites.
        total, aleatoric, epistemic: uncertainty, `(n, *event)`.
        log_predictive_density: log of the mean likelihood of each row, `(n,)`, in nats, if observations were passed.

    Sites whose distribution has no closed mean and variance are left out of all but `draws`. Where the model draws
    latent values for each row anew (discrete sites; any with a value a row, at new rows), what they add is not told
    from either part: `aleatoric` and `epistemic` are left out.
    """

    draws: dict[str, Tensor]
    mean: dict[str, Tensor] = field(default_factory=dict)
    sd: dict[str, Tensor] = field(default_factory=dict)
    total: dict[str, Tensor] = field(default_factory=dict)
    aleatoric: dict[str, Tensor] = field(default_factory=dict)
    epistemic: dict[str, Tensor] = field(default_factory=dict)
    log_predictive_density: dict[str, Tensor] = field(default_factory=dict)


def predictive(
    compiled: CompiledModel, draws: Mapping[str, Tensor], shape: tuple[int, int], *, new_rows: bool, seed: int
) -> Prediction:
    """Predictive distribution at the rows of `compiled`.

    Args:
        compiled: the model on the rows to predict for; observations may be missing.
        draws: latent site -> constrained draws `(num_chains, num_samples, *site)`.
        shape: (num_chains, num_samples).
        new_rows: whether the rows are others than the model was fitted to: latent sites that follow the rows are
            then drawn from their prior given the other sites, as discrete ones always are.
        seed: of the draws.

    Raises:
        ModelError: a discrete site is shared by rows, or an observed one is missing.
    """
    _check_discrete(compiled)
    drawn_anew = _drawn_anew(compiled, new_rows)
    values = {name: draws[name] for name in compiled.latent if name not in drawn_anew}
    averages: dict[str, _Averages] = {}
    samples: dict[str, list[Tensor]] = {}

    with seeded(seed, compiled.data.device):
        for block in _blocks(compiled, values, shape[0] * shape[1]):
            for name, found in over_draws(partial(_at_draw, compiled), block, randomness="different").items():
                samples.setdefault(name, []).append(found.pop("draw"))
                averages.setdefault(name, _Averages()).add(found)
    result = Prediction({name: torch.cat(parts).unflatten(0, shape) for name, parts in samples.items()})
    for name, average in averages.items():
        average.write(result, name, split=not drawn_anew)
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
            for name, moments in found.items():
                for mean in (moments[key] for key in ("probabilities", "mean") if key in moments):
                    parts.setdefault(name, []).append(mean)
    return {name: torch.cat(means).unflatten(0, shape) for name, means in parts.items()}


def _drawn_anew(compiled: CompiledModel, new_rows: bool) -> list[str]:
    """Latent sites whose values for the rows are not among the draws."""
    local = [site.name for site in compiled.structure.of_kind("latent") if new_rows and site.local]
    return local + [site.name for site in compiled.structure.of_kind("enumerated")]


def _at_draw(compiled: CompiledModel, draw: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Observed site -> a value drawn for each row, and moments of its distribution."""
    found = run(compiled.model, compiled.data, compiled.data.rows, FromValues(draw), sample_observed=True).sites
    _check_drawn(compiled, found)
    sites = {site.name: found[site.name] for site in compiled.structure.of_kind("observed")}
    return {name: {"draw": site["value"], **_moments(site)} for name, site in sites.items()}


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


def _moments(site: PyroSite) -> dict[str, Tensor]:
    """Functions of one draw's distribution whose averages over draws give the predictive moments and the split."""
    inner = site["fn"]
    while isinstance(inner, (dist.Independent, dist.MaskedDistribution)):
        inner = inner.base_dist
    if isinstance(inner, (torch.distributions.Bernoulli, torch.distributions.Categorical)):
        finite: Any = inner
        return {"probabilities": finite.probs, "entropy": finite.entropy()}
    try:
        return {"mean": inner.mean, "variance": inner.variance}
    except (NotImplementedError, AttributeError):
        return {}


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
            values["square"] = values["mean"].square()
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value.sum(0)
        self.count += len(next(iter(values.values()), ()))

    def write(self, result: Prediction, name: str, *, split: bool) -> None:
        """Fills in what is known of a site; the two parts of its uncertainty if `split`."""
        average = {moment: value / self.count for moment, value in self.sums.items()}
        if "entropy" in average:
            probabilities = average["probabilities"]
            binary = probabilities.shape == average["entropy"].shape  # one probability a row
            family: Any = dist.Bernoulli if binary else dist.Categorical
            result.mean[name] = probabilities
            if binary:
                result.sd[name] = (probabilities * (1 - probabilities)).sqrt()
            entropy = family(probs=probabilities, validate_args=False).entropy()
            parts = of_entropies(entropy, average["entropy"])
        elif "mean" in average:
            result.mean[name] = self.center + average["mean"]
            parts = of_variances(average["variance"], average["square"] - average["mean"].square())
            result.sd[name] = parts.total.sqrt()
        else:
            return
        result.total[name] = parts.total
        if split:
            result.aleatoric[name], result.epistemic[name] = parts.aleatoric, parts.epistemic


def log_likelihood(compiled: CompiledModel, draws: Mapping[str, Tensor], *, new_rows: bool) -> dict[str, Tensor]:
    """Observed site -> log-likelihood of every row at every draw, `(num_chains, num_samples, n)`, in nats.

    Raises:
        MinibatchError: latent sites follow the rows, so that new rows have no values for them.
        ArgumentError, DataError: new rows lack observations, or have some outside their support.
    """
    local = [name for name in compiled.latent if compiled.sites[name].local]
    if new_rows and local:
        raise MinibatchError(
            f"Site '{local[0]}' has a value for each row the model was fitted to, and none for other rows, so their "
            "log-likelihood is not known. Call log_likelihood() without data."
        )
    values = {name: draws[name] for name in compiled.latent}
    num_chains, num_samples = next(iter(values.values())).shape[:2]
    if new_rows:
        check_observations(compiled, values)
    blocks = [
        over_draws(compiled.log_likelihood_at, block) for block in _blocks(compiled, values, num_chains * num_samples)
    ]
    if not blocks[0]:
        raise ModelError("No observed site of the model has a log-likelihood.")
    return {name: torch.cat([b[name] for b in blocks]).unflatten(0, (num_chains, num_samples)) for name in blocks[0]}
