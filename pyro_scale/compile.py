"""From a Pyro model and its data to a minibatched log posterior. The factor N/n is computed here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_scale.checks import check_indices, check_seed
from pyro_scale.data import FEW_ROWS, Data, Model, names_of
from pyro_scale.errors import ArgumentError, MinibatchError
from pyro_scale.first_runs import check_sites
from pyro_scale.handlers import FromPosition, FromValues, LatentSource, Run, run
from pyro_scale.information import information_of, rows_of_terms
from pyro_scale.outputs import parameters, rebuilt
from pyro_scale.params import tell_of
from pyro_scale.plates import batch_size_of, prepare
from pyro_scale.rows import by_row
from pyro_scale.sites import Site, Structure, describe
from pyro_scale.starts import blame, find_start
from pyro_scale.terms import Terms, terms_of
from pyro_scale.types import Batch, Information, Position


def compile_model(
    model: Model,
    data: Any,
    *,
    constants: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> CompiledModel:
    """Compiles a Pyro model, written for all of the data, to a log posterior that minibatches estimate without bias.

    Args:
        model: an ordinary Pyro model, its rows in a plate of one of the forms that `infer` takes. A `pyro.param` is
            held at its value in Pyro's store, where it may have been trained, or else at its initial value.
        data: its N rows, as `infer` takes them: tensors or arrays by argument, a `Dataset` or `DataLoader`, or `{}`.
        constants: keyword arguments that the model receives whole.
        batch_size: rows of a minibatch, 1 to N; None for all rows, or for the size that plate or loader have.
        seed: of the positions at which the model is examined; the log posterior does not depend on it.
        device, dtype: where to compute, and in what floating type; None for those of the data.

    Raises:
        DataError: data that are empty, ragged, not finite or outside a site's support.
        ArgumentError: an unknown or missing argument, a batch_size, device or dtype out of range.
        ModelError: no latent or observed site, one that cannot be summed out, a model that changes from run to run.
        MinibatchError: the log density does not split over rows as `batch_size` asks.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)
        >>> compiled = compile_model(model, {"y": torch.zeros(100)}, batch_size=10)
        >>> batch = compiled.batch(torch.arange(10))
        >>> batch.scale, round(float(compiled.log_posterior({"mu": torch.tensor(0.0)}, batch)), 2)
        (10.0, -92.81)
    """
    table = prepare(model, data, constants, dtype=dtype, device=device)
    size = batch_size_of(table, batch_size)
    generator = torch.Generator().manual_seed(0 if seed is None else check_seed(seed, ", or None"))
    compiled = CompiledModel(model, table, describe(model, table, size, generator), size)
    tell_of(table.params)
    return compiled


class CompiledModel:
    """A Pyro model as functions of unconstrained positions and batches; made by `compile_model`.

    All functions of a position work under `torch.func.vmap`, `grad` and both, with the batch closed over.

    Attributes:
        num_data: N, the number of rows.
        sites: name -> description of the sample statement, in order of execution.
        batch_size: rows of a minibatch; None for full batch.
        data: the rows and constants the model is called with.
        structure: the sites, the dimension name of the rows, and why the model cannot be minibatched if it cannot.
        local: latent site with a value a row -> the axis of that value which follows the rows. Positions hold these
            values for the rows of a batch, in its order; those of a whole chain hold them for all N rows.
        weight: how many rows each stands for, beside those of its minibatch: 1, unless the data are a sample.
    """

    def __init__(
        self, model: Model, data: Data, structure: Structure, batch_size: int | None, weight: float = 1.0
    ) -> None:
        self.model, self.data, self.structure = model, data, structure
        self.batch_size, self.weight, self.num_data = batch_size, weight, data.num_data
        self.sites: dict[str, Site] = structure.sites
        self._whole_only = structure.minibatch_error is not None
        few = min(FEW_ROWS, self.num_data)
        self._few = data.rows if self._whole_only else data.take(torch.arange(few, device=data.device))
        self.local = {site.name: site.axis for site in self.structure.of_kind("latent") if site.axis is not None}

    def __call__(self, position: Position, batch: Batch) -> Tensor:
        """`log_posterior`: the model is a target for kernels."""
        return self.log_posterior(position, batch)

    @property
    def latent(self) -> dict[str, torch.Size]:
        """Unconstrained shape of every latent site, for all rows."""
        shapes = {site.name: list(site.unconstrained_shape) for site in self.structure.of_kind("latent")}
        for name, axis in self.local.items():
            shapes[name][axis] = self.num_data
        return {name: torch.Size(shape) for name, shape in shapes.items()}

    def at_rows(self, position: Position, indices: Tensor) -> Position:
        """The position that `log_posterior` takes for a batch of these rows, from one that holds all rows."""
        return {name: self._at_rows(name, leaf, indices) for name, leaf in position.items()}

    def _at_rows(self, name: str, leaf: Tensor, indices: Tensor) -> Tensor:
        return leaf.index_select(self.local[name], indices) if name in self.local else leaf

    def batch(self, indices: Tensor | None = None) -> Batch:
        """Rows by index, of shape `(n,)` or `(num_chains, n)`, with their scale N/n; None for all rows.

        Raises:
            ArgumentError: the indices are no whole numbers, there are none, or (on the CPU) one is no row's.
            MinibatchError: the model can only be evaluated on all rows, and these are others.
        """
        if indices is None:
            return self.arrived(self.data.rows)
        indices = check_indices(indices, self.num_data, self.data.device)
        if self._whole_only and not torch.equal(indices, torch.arange(self.num_data, device=indices.device)):
            raise MinibatchError(self.structure.minibatch_error)
        return self.gathered(indices)

    def gathered(self, indices: Tensor) -> Batch:
        """As `batch`, at indices that are known to be those of rows."""
        return Batch(self.data.take(indices), indices, self.num_data / indices.shape[-1])

    def arrived(self, rows: dict[str, Tensor]) -> Batch:
        """Rows as they come, with their scale N/n; which of all they are is not asked."""
        indices = torch.arange(len(next(iter(rows.values()))), device=self.data.device)
        return Batch(rows, indices, self.num_data / len(indices))

    def log_posterior(self, position: Position, batch: Batch) -> Tensor:
        """Unbiased estimate, in nats, of log prior + log|det Jacobian| + log-likelihood of all rows; 0-d."""
        terms = self._terms(self._run(position, batch.data), batch.data)
        rows = [term.sum() for term in (terms.local, *terms.likelihood.values())]
        return terms.once + self.weight * batch.scale * sum(rows, torch.zeros_like(terms.once))

    def log_prior(self, position: Position) -> Tensor:
        """Log prior + log|det Jacobian|, and every other term but the likelihood; 0-d, in nats.

        A position with values a row must hold them for all rows.
        """
        rows = self._rows_for(list(self.latent))
        terms = self._terms(self._run(position, rows), rows)
        return terms.once + terms.local.sum()

    def log_likelihood(self, position: Position, batch: Batch) -> dict[str, Tensor]:
        """Observed site -> log-likelihood of each row of the batch, `(n,)`, unscaled; factors over rows included.

        A joint event over the data, which full batch admits, has one term, `(1,)`.
        """
        return self._terms(self._run(position, batch.data), batch.data).likelihood

    def log_likelihood_at(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`log_likelihood` of all rows at constrained values of the latent sites."""
        return self._terms(run(self.model, self.data, self.data.rows, FromValues(values)), self.data.rows).likelihood

    def on(self, data: Data, weight: float = 1.0) -> CompiledModel:
        """The same model on other rows, which may be a sample that stands for more."""
        return CompiledModel(self.model, data, self.structure, self.batch_size, weight)

    def outputs(self, position: Position, batch: Batch) -> dict[str, dict[str, Tensor]]:
        """Observed site -> the parameters of its distribution (a network's outputs), as the model gives them."""
        found = self._run(position, batch.data).sites
        return {site.name: parameters(found[site.name]) for site in self._over_rows()}

    def output_log_prob(self, outputs: Mapping[str, Mapping[str, Tensor]], batch: Batch) -> dict[str, Tensor]:
        """Observed site -> log-likelihood of each row, `(n,)`, as a function of the distribution's parameters."""
        anywhere = self.at_rows(self.structure.position, torch.zeros_like(batch.indices))
        found = self._run(anywhere, batch.data).sites
        return {
            site.name: by_row(rebuilt(found[site.name], outputs[site.name]), site.rows)
            for site in self._over_rows()
            if site.name in outputs and site.rows is not None
        }

    def information(self, position: Position, batch: Batch) -> dict[str, Information]:
        """Observed site -> free parameters of its distribution, and their Fisher information; or `ModelError`."""
        rows, found = rows_of_terms(self.structure), self._run(position, batch.data).sites
        return {name: information_of(found[name], axis) for name, axis in rows.items()}

    def constrain(self, position: Position, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Values of latent and deterministic sites in the model's own space.

        `names` are those that are wanted; None for `kept`. For sites that follow the rows the position must hold all.
        """
        names = self.kept if names is None else names
        rows = self._rows_for(names)
        if not any(self.sites[name].local for name in names):  # no value that is wanted depends on these
            few = len(next(iter(rows.values())))
            anywhere = self.at_rows(
                self.structure.position, torch.zeros(few, dtype=torch.long, device=self.data.device)
            )
            position = {**position, **{name: anywhere[name] for name in self.local}}
        found = self._run(position, rows).sites
        return {name: found[name]["value"] for name in names}

    def rows_run(self, names: Sequence[str]) -> int:
        """How many rows the model runs on to `constrain` these sites."""
        return len(next(iter(self._rows_for(names).values())))

    @property
    def kept(self) -> list[str]:
        """Sites whose draws are kept by default: in a minibatched run those that do not follow the rows."""
        return [name for name in self.drawn if not self.sites[name].local or self.batch_size is None]

    @property
    def drawn(self) -> list[str]:
        """Sites that have draws: latent and deterministic ones, but for what depends on discrete sites."""
        return [site.name for site in self.structure.of_kind("latent", "deterministic") if not site.summed]

    def unconstrain(self, values: Mapping[str, Tensor]) -> Position:
        """The position of these values of latent sites, `ArgumentError` where one has none; NaN outside a support."""
        if missing := [name for name in self.latent if name not in values]:
            raise ArgumentError(f"values lack the latent site '{missing[0]}'; got {names_of(list(values))}.")
        return self.position_of(FromValues(values))

    def position_of(self, source: LatentSource, *, sample_discrete: bool = False) -> Position:
        """Where a run puts the latent sites, with values from a source that has or receives their position."""
        run(self.model, self.data, self._rows_for(list(self.latent)), source, sample_discrete=sample_discrete)
        return {name: source.position[name] for name in self.latent}

    def initial_position(self, seed: int) -> Position:
        """Uniform within 2 of 0 in every unconstrained coordinate, tried until log density and gradient are finite.

        Raises:
            ArgumentError: the seed is no whole number from 0 to 2**63 - 1.
            StartError: none of 100 attempts was finite; names the site.
        """
        return find_start(self, check_seed(seed))

    def blame(self, position: Position, batch: Batch) -> str:
        """Which site's log density or gradient is not finite at a position, in words."""
        return blame(position, lambda at: self(at, batch), lambda at: self._run(at, batch.data))

    def _run(self, position: Position, rows: Mapping[str, Tensor]) -> Run:
        if missing := self.latent.keys() - position.keys():
            raise ArgumentError(f"position lacks the latent site '{min(missing)}'; got {names_of(list(position))}.")
        found = run(self.model, self.data, rows, FromPosition(position))
        check_sites(self.sites.keys(), found)
        return found

    def _rows_for(self, names: Sequence[str]) -> Mapping[str, Tensor]:
        return self.data.rows if any(self.sites[name].local for name in names) else self._few

    def _over_rows(self) -> list[Site]:
        return [site for site in self.structure.of_kind("observed") if site.rows is not None]

    def _terms(self, found: Run, rows: Mapping[str, Tensor]) -> Terms:
        return terms_of(found, self.structure, len(next(iter(rows.values()))))
