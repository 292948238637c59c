"""What of a posterior is in its ArviZ object, and so in its file: groups of arrays, and a record as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pyro_scale import inference_data
from pyro_scale.compile import CompiledModel
from pyro_scale.groups import Group, arrays, axis_names, data_groups
from pyro_scale.stored_gaussians import taken_apart

if TYPE_CHECKING:
    from pyro_scale.posterior import Posterior

MOMENT_GROUPS = {"posterior_mean": "mean", "posterior_sd": "sd"}


def built(posterior: Posterior, compiled: CompiledModel) -> Any:
    """The ArviZ object."""
    groups: dict[str, Group] = {"posterior": arrays(posterior.draws), "sample_stats": arrays(posterior.sample_stats)}
    for group, field in MOMENT_GROUPS.items():  # as one draw
        groups[group] = arrays({name: getattr(one, field).unsqueeze(1) for name, one in posterior.moments.items()})
    if posterior.approximation is not None:
        groups["approximation"] = arrays(taken_apart(posterior.approximation)[1])
    if compiled.structure.prior is not None:
        groups["prior_approximation"] = arrays(taken_apart(compiled.structure.prior)[1])
    if posterior.trace is not None:
        groups["trace"] = arrays({"objective": posterior.trace})
    dims: dict[str, Sequence[str | None]] = {"objective": ["fit", "step"], **axis_names(compiled)}
    return inference_data.build({**groups, **data_groups(compiled)}, dims=dims, attrs=attributes(posterior))


def attributes(posterior: Posterior) -> dict[str, Any]:
    """Of every group."""
    seconds, tuning = posterior.timing.get("sample"), posterior.settings.get("warmup_steps")
    return {"pyro_scale": json.dumps(record(posterior)), "sampling_time": seconds, "tuning_steps": tuning}


def record(posterior: Posterior) -> dict[str, Any]:
    """What is written beside the arrays: JSON only."""
    names, gaussian = inference_data.variable_names(posterior.moments), posterior.approximation
    prior = None if posterior.compiled is None else posterior.compiled.structure.prior
    return {
        "dtypes": {name: _dtype(value) for name, value in posterior.draws.items()},
        "variables": inference_data.variable_names(posterior.draws),
        "moments": {name: (names[name], _dtype(one.mean)) for name, one in posterior.moments.items()},
        "latent": {} if posterior.compiled is None else posterior.compiled.latent,
        "num_steps": posterior.num_steps,
        "step_size": posterior.step_size,
        "timing": posterior.timing,
        "settings": posterior.settings,
        "checks": posterior.checks,
        "approximation": None if gaussian is None else taken_apart(gaussian)[0],
        "prior": None if prior is None else taken_apart(prior)[0],
    }


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
