"""What gradients at the draws tell of a run: temperatures of its sites, and the bias that its settings predict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.bias import Bias, predicted_bias
from pyro_scale.compile import CompiledModel
from pyro_scale.data import names_of
from pyro_scale.draws import over_draws, thinned
from pyro_scale.gradient_noise import minibatch_gradients, without_replacement
from pyro_scale.health import Check, at_most, of_sds
from pyro_scale.loaders import Streamed
from pyro_scale.mode import DENSE_LIMIT
from pyro_scale.temperature import Measured, configurational, gradients_at
from pyro_scale.threads import suit_threads, threads_kept
from pyro_scale.types import Kernel, Position

MOST_POSITIONS = 1024
MOST_NUMBERS = 2**22
"""Of all positions together; the gradients of several sets of rows are as many each."""
LEAST_EVALUATIONS, MOST_EVALUATIONS = 2**18, 2**26
SHARE = 0.2
"""Of the rows' gradients that a run took, so many more are taken here, within these bounds."""
ROW_BLOCKS = 8
LEAST_ROWS = 512
A_COORDINATE = 4
"""Positions that a coordinate takes to find the curvature among them."""
FOLLOWED = {"position", "momentum", "thermostat"}
LEAST_CURVATURE = 1e-6
"""Relative to the largest."""
NOISE_POSITIONS, NOISE_REPEATS = 64, 4


class Examined(NamedTuple):
    """Positions of draws, and gradients there.

    Attributes:
        positions: `(num_chains, num_samples, *site)`, unconstrained.
        gradients: of the log posterior, on each of several sets of rows.
    """

    positions: Position
    gradients: list[Position]


@threads_kept()
def by_gradients(
    compiled: CompiledModel | None,
    draws: Mapping[str, Tensor],
    kernel: Any,
    settings: Mapping[str, Any],
    num_steps: int,
) -> tuple[list[Check], list[str]]:
    """Checks that take gradients, and sentences on what could not be checked.

    Args:
        compiled: the model; None if it is not at hand.
        draws: site -> `(num_chains, num_samples, *site)`.
        kernel: as it ran; None for NUTS, and for a run that is only known from a file.
        settings: of the posterior.
        num_steps: that each chain took.
    """
    if "temperature" not in settings:
        return [], ["Temperatures are not checked: the file does not tell that of the run."]
    temperature = settings["temperature"]
    if not temperature:
        return [], ["Temperatures are not checked: the kernel's is a schedule, or 0."]
    if reason := why_not_examined(compiled, draws):
        return [], [f"Temperatures are not checked: {reason}."]
    assert compiled is not None
    suit_threads(compiled, len(next(iter(draws.values()))))
    rows = compiled.batch_size or compiled.num_data
    examined = examine(compiled, draws, num_steps * rows * len(next(iter(draws.values()))))
    tolerance = settings.get("bias_tolerance", 0.05)
    wide = "Lower step_size or raise batch_size, or leave step_size None to have them tuned; then run longer."
    narrow = "Chains have not been everywhere: run them longer, or start them further apart (initial)."
    found = [of_sds("sd error, by gradients", sd_errors(examined, temperature), 2 * tolerance, wide, narrow)]
    left_out = [] if found[0] is not None else ["Temperatures are not checked: there are too few independent draws."]
    if kernel is not None and not settings["tuning"] and not callable(kernel.step_size):
        found += _predicted(bias_of(compiled, kernel, examined), tolerance)
    return [check for check in found if check is not None], left_out


def _predicted(bias: Bias | None, tolerance: float) -> list[Check]:
    """What the kernel's law says of a normal posterior of this curvature."""
    if bias is None:
        return []
    remedies = {
        "step size": ("step_size", "Lower step_size, or leave it None to have it tuned."),
        "minibatches": (
            "minibatches",
            "Raise batch_size or lower step_size, or leave it None: control variates then remove the noise.",
        ),
    }
    found = []
    for name, (field, remedy) in remedies.items():
        worst = float(getattr(bias, field).abs().max())
        found.append(at_most(f"sd error, predicted of {name}", worst, tolerance, "", remedy))
    return found


def why_not_examined(compiled: CompiledModel | None, draws: Mapping[str, Tensor]) -> str:
    """What keeps gradients at the draws from being computed; "" if nothing does."""
    if compiled is None:
        return "the posterior was loaded without its model"
    if isinstance(compiled.data, Streamed):
        return "the rows come from a DataLoader"
    if missing := [name for name in compiled.latent if name not in draws]:
        return f"draws of {names_of(missing)} were not kept"
    if compiled.local and compiled.batch_size is not None:
        return f"{names_of(list(compiled.local))} have a value for each row of the minibatches"
    return ""


def examine(compiled: CompiledModel, draws: Mapping[str, Tensor], evaluations: int) -> Examined:
    """Gradients at draws of all latent sites, on all rows or several samples of them.

    Args:
        compiled: the model.
        draws: site -> `(num_chains, num_samples, *site)`.
        evaluations: of a row's gradient, that the run took.
    """
    latent = {name: draws[name] for name in compiled.latent}
    num_chains, num_samples = next(iter(latent.values())).shape[:2]
    size = sum(value[0, 0].numel() for value in latent.values())
    allowed = min(MOST_EVALUATIONS, max(LEAST_EVALUATIONS, int(SHARE * evaluations)))
    rows = min(compiled.num_data, max(LEAST_ROWS, allowed // MOST_POSITIONS))
    if compiled.structure.minibatch_error is not None:
        rows = compiled.num_data
    number = min(MOST_POSITIONS, max(1, allowed // rows), max(1, MOST_NUMBERS // max(1, size)))
    some = thinned(latent, min(num_samples, max(1, number // num_chains)))
    flat = {name: value.flatten(0, 1) for name, value in some.items()}
    positions: Position = over_draws(compiled.unconstrain, flat, num_rows=compiled.rows_run(list(latent)))
    batches = [compiled.batch()]
    if rows < compiled.num_data:
        chosen = torch.randperm(compiled.num_data, generator=torch.Generator().manual_seed(0), device="cpu")[:rows]
        batches = [compiled.batch(block) for block in chosen.chunk(ROW_BLOCKS)]
    gradients = [gradients_at(compiled, positions, batch) for batch in batches]

    def by_chain(leaf: Tensor) -> Tensor:
        return leaf.reshape(num_chains, len(leaf) // num_chains, *leaf.shape[1:])

    return Examined(tree.map(by_chain, positions), [tree.map(by_chain, each) for each in gradients])


def sd_errors(examined: Examined, temperature: float) -> dict[str, Measured]:
    """Site -> by how much its sds are wrong, relative to themselves, as its configurational temperature tells."""
    errors = {}
    for name, leaf in examined.positions.items():
        if leaf[0, 0].numel() == 0:
            continue
        seen = configurational(_vectors(leaf), [_vectors(each[name]) for each in examined.gradients])
        sd = math.sqrt(max(seen.value / temperature, 1e-6))
        errors[name] = Measured(sd - 1, seen.error / temperature / (2 * sd))
    return errors


def _vectors(leaf: Tensor) -> Tensor:
    flat: Tensor = leaf.reshape(*leaf.shape[:2], -1)
    return flat.double()


def bias_of(compiled: CompiledModel, kernel: Any, examined: Examined) -> Bias | None:
    """What the kernel's own law predicts at the curvature and gradient noise found; None where that cannot be told."""
    vectors = _all(examined.positions)
    number, size = vectors.shape
    if size > DENSE_LIMIT or number < A_COORDINATE * size or not _predictable(kernel):
        return None
    slopes = torch.stack([_all(each) for each in examined.gradients]).mean(0)
    # the mean Hessian of a normal posterior, however its draws are spread
    hessian = -torch.linalg.lstsq(vectors - vectors.mean(0), slopes - slopes.mean(0)).solution
    curvatures, vectors = torch.linalg.eigh((hessian + hessian.T) / (2 * compiled.num_data))
    # what is not positive is not told from 0 by so many positions
    curvatures = curvatures.clamp(min=LEAST_CURVATURE * float(curvatures.max()))
    epoch = compiled.num_data / (compiled.batch_size or compiled.num_data)
    if isinstance(taken := getattr(kernel, "gradient_variance", None), dict):  # in the order of the positions
        kernel = replace(kernel, gradient_variance={n: taken[n].expand(s) for n, s in compiled.latent.items()})
    noise = _noise(compiled, examined.positions)
    return predicted_bias(kernel, vectors * curvatures @ vectors.T, noise, compiled.num_data, epoch)


def _predictable(kernel: Kernel) -> bool:
    """Whether a kernel's state has nothing, as a preconditioner, that the prediction does not follow."""
    number = {"x": torch.zeros((), dtype=torch.float64)}
    bound = kernel.bind(lambda position, batch: position["x"], 1)
    return set(type(bound.init(number, number))._fields) <= FOLLOWED


def _all(leaves: Position) -> Tensor:
    """Leaves `(num_chains, num_samples, *site)` as `(num_chains * num_samples, d)`."""
    joined: Tensor = torch.cat([_vectors(leaf) for leaf in leaves.values()], -1)
    return joined.flatten(0, 1)


def _noise(compiled: CompiledModel, positions: Position) -> Tensor:
    """Covariance over minibatches of the gradient per datum, `(d, d)`."""
    flat = tree.map(lambda leaf: leaf.flatten(0, 1), positions)
    number, size = len(_all(positions)), compiled.batch_size or compiled.num_data
    if size >= compiled.num_data:
        return torch.zeros(2 * (_all(positions).shape[1],), dtype=torch.float64)
    chosen = torch.linspace(0, number - 1, min(number, NOISE_POSITIONS)).long()
    some, generator = tree.map(lambda leaf: leaf[chosen], flat), torch.Generator().manual_seed(0)
    repeats = [
        minibatch_gradients(compiled, compiled.gathered, compiled.num_data, size, (), some, generator)
        for _ in range(NOISE_REPEATS)
    ]
    found = torch.stack([_all(tree.map(lambda leaf: leaf.unsqueeze(0), each)) for each in repeats])
    away = (found - found.mean(0)).flatten(0, 1)
    covariance: Tensor = away.T @ away / (len(chosen) * (NOISE_REPEATS - 1))
    return covariance * without_replacement(compiled.num_data, size) / compiled.num_data**2
