"""`Posterior`: draws, where they came from, and what can be done with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_scale import contents, inference_data, storage, tree
from pyro_scale.assessment import by_gradients
from pyro_scale.checks import check_count, check_path, check_seed
from pyro_scale.compile import CompiledModel
from pyro_scale.data import names_of
from pyro_scale.draws import at_random, constrain
from pyro_scale.errors import ArgumentError, MissingModelError
from pyro_scale.gaussians import sample
from pyro_scale.groups import Group, arrays, axis_names, prior_draws
from pyro_scale.health import Check, Health
from pyro_scale.linearized import Covariance, Link
from pyro_scale.mixing import of_draws, of_moments, of_superchains
from pyro_scale.moments import Moments
from pyro_scale.other_rows import new_rows
from pyro_scale.predict import log_likelihood
from pyro_scale.prediction import Prediction
from pyro_scale.predictions import Wanted, predicted
from pyro_scale.types import Gaussian, Kernel

REQUESTED_GROUPS = ("log_likelihood", "posterior_predictive", "prior", "warmup_posterior")
SEEDED_GROUPS = ("posterior_predictive", "prior")


class Posterior:
    """Draws from a posterior, in the space of the model; made by `infer`, `diagnostics.nuts` and `load`.

    Attributes:
        draws: site -> `(num_chains, num_samples, *site)`, deterministic sites included.
        moments: site with a value for each row, whose draws a minibatched run does not keep -> mean and sd over the
            draws of each chain, `(num_chains, *site)`.
        num_steps: steps that each chain took, warm-up included.
        step_size: of the last step, in whitened coordinates after tuning; for NUTS the mean over chains.
        timing: seconds, by what they were spent on.
        sample_stats: ArviZ name -> `(num_chains, num_samples, ...)`.
        settings: method, kernel, seed, sizes: what it takes to repeat the run.
        compiled: the model; None for a posterior loaded without it.
        kernel: as it ran; None for NUTS and for a posterior from a file.
        checks: what only the run itself could check; `health` has all.
        approximation: the normal distribution of unconstrained positions that was fitted; None where draws are all.
        trace: objective of every step of a fit, `(num_fits, num_steps)`, in nats: the log posterior as the step's rows
            estimate it, or the evidence lower bound. None for chains.
    """

    def __init__(
        self,
        draws: Mapping[str, Tensor],
        *,
        sample_stats: Mapping[str, Tensor],
        num_steps: int,
        step_size: float | None,
        timing: Mapping[str, float],
        settings: Mapping[str, Any],
        compiled: CompiledModel | None = None,
        kernel: Kernel | None = None,
        checks: Sequence[Check] = (),
        warmup: Mapping[str, Tensor] | None = None,
        moments: Mapping[str, Moments] | None = None,
        approximation: Gaussian | None = None,
        trace: Tensor | None = None,
        idata: Any = None,
    ) -> None:
        self.draws = dict(draws)
        self.moments = dict(moments or {})
        self.sample_stats = dict(sample_stats)
        self.num_steps = num_steps
        self.step_size = step_size
        self.timing = dict(timing)
        self.settings = dict(settings)
        self.compiled = compiled
        self.kernel = kernel
        self.checks = tuple(checks)
        self.approximation = approximation
        self.trace = trace
        self._warmup = warmup
        self._idata = idata

    def __repr__(self) -> str:
        num_chains, num_samples = self._shape
        method = self.settings.get("method", "unknown method")
        return f"Posterior({method}, {num_chains} chains x {num_samples} draws of {names_of(list(self.draws))})"

    @property
    def _shape(self) -> tuple[int, int]:
        first = next(iter(self.draws.values()))
        return int(first.shape[0]), int(first.shape[1])

    @property
    def idata(self) -> Any:
        """ArviZ object: `InferenceData` on ArviZ 0.x, `xarray.DataTree` on 1.x; built on first access.

        Groups: posterior, sample_stats, observed_data, constant_data, and posterior_mean and posterior_sd, with one
        draw, for `moments`; `add_groups` adds others.
        """
        if self._idata is None:
            self._idata = contents.built(self, self.model_for("idata"))
        return self._idata

    @property
    def log_marginal_likelihood(self) -> float | None:
        """Laplace's log p(y), in nats; None for other methods, and at another temperature than 1."""
        return self.settings.get("log_marginal_likelihood")

    @property
    def verdict(self) -> Health:
        """What is known without more gradients: R-hat, effective sample sizes, and what the run itself could check."""
        if self.trace is not None:
            return Health(self.checks)
        found = of_draws(self.draws, self.settings.get("tuning", {}).get("modes", 1))
        found += of_moments(self.moments, max((each.shape[1] for each in self.draws.values()), default=0))
        if groups := self.settings.get("num_superchains"):
            found += of_superchains(self.draws, groups)
        return Health([*found, *self.checks])

    @cached_property
    def health(self) -> Health:
        """All checks, each with a limit and, where it failed, what to change; gradients are taken on first access.

        To `verdict` it adds the configurational temperature of every latent site, which tells by how much its
        standard deviations are wrong, and for a kernel with a step_size of the user's what bias the kernel's law
        predicts at the curvature and gradient noise that are found. They take at most a fifth of the gradients of the
        run, or 2**18 of single rows, and 256 minibatches to see their noise.
        """
        if self.trace is not None:
            reason = self.settings.get("left_out")
            return Health(self.checks, [f"Whether the gradient is 0 is not checked: {reason}."] if reason else [])
        checks, left_out = by_gradients(self.compiled, self.draws, self.kernel, self.settings, self.num_steps)
        return Health([*self.verdict.checks, *checks], left_out)

    def add_groups(self, *names: str, seed: int = 0) -> Any:
        """Adds groups to `idata` that cost time or memory, and returns it.

        Args:
            names: among "log_likelihood" (for `az.loo`), "posterior_predictive", "prior" and "warmup_posterior".
            seed: of the draws from the prior and the predictive distribution. These are drawn anew where `idata` has
                them already; groups that follow from the draws alone stay as they are.

        Raises:
            ArgumentError: an unknown name, or a warm-up that was not saved.
        """
        for name in names:
            if name not in REQUESTED_GROUPS:
                raise ArgumentError(f"There is no group '{name}' to add; choose among {names_of(REQUESTED_GROUPS)}.")
        seed = check_seed(seed)
        made = {
            "log_likelihood": lambda: arrays(self.log_likelihood()),
            "posterior_predictive": lambda: arrays(self.predict(seed=seed).draws),
            "prior": lambda: prior_draws(self.model_for("add_groups"), seed),
            "warmup_posterior": self._warmup_arrays,
        }
        # a loaded posterior has its warm-up, and without a model its log-likelihood, only there
        present = () if self._idata is None else inference_data.group_names(self._idata)
        groups = {name: made[name]() for name in names if name in SEEDED_GROUPS or name not in present}
        for name, group in groups.items():
            dims = axis_names(self.model_for("add_groups"), by_row=name == "log_likelihood")
            inference_data.extend(self.idata, {name: group}, dims=dims, attrs=contents.attributes(self))
        return self.idata

    def sample(self, n: int, seed: int) -> dict[str, Tensor]:
        """`n` draws, site -> `(n, *site)`: anew from `approximation`, where the model is there too.

        Otherwise at random of the draws there are, without repetition while there are enough.
        """
        n, seed = check_count("n", n, 1), check_seed(seed)
        if self.approximation is None or self.compiled is None:
            return at_random(self.draws, n, seed)
        positions = sample(self.approximation, n, torch.Generator().manual_seed(seed))
        blocks = [tree.map(lambda leaf: leaf.unsqueeze(1), positions)]
        return tree.map(lambda leaf: leaf[0], constrain(self.compiled, blocks, tuple(self.draws)))

    def predict(
        self,
        data: Any = None,
        *,
        num_samples: int | None = None,
        seed: int = 0,
        linearized: bool = False,
        link: Link | None = None,
        covariance: Covariance | None = None,
        keep_draws: bool = True,
    ) -> Prediction:
        """Posterior predictive distribution of the observed sites; discrete sites of the rows are drawn anew.

        Args:
            data: new rows, in the form that `infer` took, without the observations (the model's `y=None` is used) or
                with them (they are scored too); None for the rows of the fit.
            num_samples: use that many of the draws of each chain, evenly spaced; None for all. Linearised: draws of
                each row's parameters; None for as many as the posterior has draws.
            seed: of the draws.
            linearized: predict each row by the model linearised in the latent sites, around the mean of
                `approximation` (Immer, Korzepa & Bauer, 2021): for Laplace's of networks above all.
            link: linearised, from logits to probabilities: "monte_carlo", by draws (None), or "probit", in closed
                form, which does not split their uncertainty. Normal observations always have a closed form.
            covariance: linearised, "full" of all numbers of a row (None), or "diagonal", each by itself.
            keep_draws: False keeps no draws of the observed sites: memory does not grow with their number.

        Raises:
            MissingModelError: the posterior was loaded without a model, or did not keep a latent site.
            ArgumentError, DataError: an argument is unusable or missing, or there is no `approximation`.
            ModelError: a discrete site is not in the plate of the rows, or the model cannot be linearised.
        """
        return predicted(self, Wanted(data, num_samples, seed, linearized, link, covariance, keep_draws))

    def log_likelihood(self, data: Any = None) -> dict[str, Tensor]:
        """Observed site -> log-likelihood of each row at each draw, `(num_chains, num_samples, n)`, in nats.

        Args:
            data: rows with their observations; None for those of the fit.
        """
        compiled = self.model_for("log_likelihood")
        draws = self.latent_draws("log_likelihood", new_rows=data is not None)
        if data is None:
            return log_likelihood(compiled, draws, new_rows=False)
        return log_likelihood(compiled.on(new_rows(compiled, data)), draws, new_rows=True)

    def save(self, path: str | Path) -> None:
        """Writes everything but the model: netCDF for `.nc`, zarr for `.zarr`. A failure leaves no partial file.

        Raises:
            ArgumentError: the path is no path.
            FileFormatError: another suffix.
            FileNotFoundError: the folder does not exist.
        """
        storage.write(self.idata, check_path(path))

    def _warmup_arrays(self) -> Group:
        if not self._warmup:
            raise ArgumentError("The warm-up was not saved. Run infer(..., save_warmup=True) to have it.")
        return arrays(self._warmup)

    def model_for(self, wanted_by: str) -> CompiledModel:
        """The model, for `wanted_by`, or a `MissingModelError` that names it."""
        if self.compiled is None:
            raise MissingModelError(
                f"{wanted_by} runs the model, and this posterior was loaded without it. Load it with "
                "ps.load(path, model=model, data=data)."
            )
        return self.compiled

    def latent_draws(self, wanted_by: str, *, new_rows: bool) -> dict[str, Tensor]:
        """Draws of the latent sites; for new rows of those only that have no value for each row."""
        compiled = self.model_for(wanted_by)
        names = [name for name in compiled.latent if not (new_rows and compiled.sites[name].local)]
        if missing := [name for name in names if name not in self.draws]:
            raise MissingModelError(
                f"{wanted_by} needs draws of every latent site, and '{missing[0]}' was not kept. Name it in keep: "
                f"keep={names}."
            )
        return {name: self.draws[name] for name in names}
