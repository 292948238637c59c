"""What a compiled model contributes to an ArviZ object: observed and constant data, prior draws, names of axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.compile import CompiledModel
from pyro_scale.draws import constrain, over_draws
from pyro_scale.errors import ArgumentError
from pyro_scale.gaussians import sample
from pyro_scale.handlers import FromPosition, FromValues, run, seeded
from pyro_scale.loaders import Streamed

PRIOR_DRAWS = 500
PARAM_NUMBERS = 2**16
"""Parameters that are held are told unless they are larger: a trained network may have more numbers than the draws."""

Group = dict[str, np.ndarray]


def arrays(values: Mapping[str, Tensor]) -> Group:
    """NumPy arrays; what NumPy has no type for (bfloat16) becomes float32."""
    return {name: _array(value) for name, value in values.items()}


def data_groups(compiled: CompiledModel) -> dict[str, Group]:
    """`observed_data` by site, and `constant_data`: the other arguments that are arrays or numbers.

    Rows of a `DataLoader` are left out.
    """
    observed, constants = {}, {}
    rows = compiled.data.columns
    if not isinstance(compiled.data, Streamed):  # else they are never all there
        for site in compiled.structure.of_kind("observed"):
            observed[site.name] = rows[site.argument] if site.argument else _observed_value(compiled, site.name)
        used = {site.argument for site in compiled.sites.values()}
        constants = {name: value for name, value in rows.items() if name not in used}
    small = {name: value for name, value in compiled.data.params.items() if value.numel() <= PARAM_NUMBERS}
    for name, value in {**small, **compiled.data.constants}.items():
        if name not in rows and isinstance(value, (Tensor, int, float)):
            constants[name] = torch.as_tensor(value)
    return {"observed_data": arrays(observed), "constant_data": arrays(constants)}


def axis_names(compiled: CompiledModel, *, by_row: bool = False) -> dict[str, list[str | None]]:
    """Variable -> names of its axes behind chain and draw, from the model's plates; `by_row`: one value a row."""
    if by_row:
        return {site.name: [compiled.structure.row_dim] for site in compiled.sites.values() if site.rows is not None}
    names: dict[str, list[str | None]] = {argument: [compiled.structure.row_dim] for argument in compiled.data.columns}
    names.update({site.name: list(site.dims) for site in compiled.sites.values()})
    return names


def prior_draws(compiled: CompiledModel, seed: int) -> Group:
    """Draws of the latent and deterministic sites from the prior, `(1, PRIOR_DRAWS, *site)`.

    Raises:
        ArgumentError: a prior is improper.
    """
    if compiled.structure.prior is not None:
        positions = sample(compiled.structure.prior, PRIOR_DRAWS, torch.Generator().manual_seed(seed))
        return arrays(constrain(compiled, [tree.map(lambda leaf: leaf.unsqueeze(1), positions)], tuple(compiled.kept)))
    rows = compiled.data.rows

    def one(_: dict[str, Tensor]) -> dict[str, Tensor]:
        found = run(compiled.model, compiled.data, rows, FromValues({}), sample_observed=True).sites
        return {name: found[name]["value"] for name in compiled.kept}

    try:
        with seeded(seed, compiled.data.device):
            drawn = over_draws(one, {"": torch.zeros(PRIOR_DRAWS)}, "different", num_rows=compiled.num_data)
    except NotImplementedError as error:
        raise ArgumentError(f"The prior cannot be drawn from: {error} An improper prior has no draws.") from error
    return arrays({name: value.unsqueeze(0) for name, value in drawn.items()})


def _observed_value(compiled: CompiledModel, name: str) -> Tensor:
    # sites with a value for each row have as many as a batch there, and any will do here
    source = FromPosition(dict(compiled.structure.position), torch.Generator())
    with torch.no_grad():
        found = run(compiled.model, compiled.data, compiled.data.rows, source)
    value: Tensor = found.sites[name]["value"]
    return value


def _array(value: Any) -> np.ndarray:
    tensor = torch.as_tensor(value).detach().cpu()
    return np.asarray(tensor.float() if tensor.dtype == torch.bfloat16 else tensor)
