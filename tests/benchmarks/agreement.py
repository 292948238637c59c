"""Whether draws are those of the posterior, before the speed of making them is compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import arviz as az
import numpy as np

MEAN_ERROR, SD_ERROR, STANDARD_ERRORS, LEAST_ESS = 0.1, 0.1, 4, 50


def pooled(answers: Sequence[dict[str, Any]]) -> np.ndarray:
    """The draws that runs of a script left, `(num_chains, num_samples, d)`, as chains of one run."""
    return np.concatenate([np.load(answer["draws"]) for answer in answers])


def bulk_ess(draws: np.ndarray) -> np.ndarray:
    """Of every coordinate, `(d,)`."""
    return np.array([float(az.ess(draws[..., i], method="bulk")) for i in range(draws.shape[-1])])


def disagreement(name: str, draws: np.ndarray, mean: np.ndarray, sd: np.ndarray) -> str | None:
    """How draws differ from the moments of the posterior; None where they do not.

    Args:
        name: of the sampler, for the message.
        draws: `(num_chains, num_samples, d)`.
        mean, sd: of the posterior, `(d,)`.
    """
    ess = bulk_ess(draws)
    if not ess.min() >= LEAST_ESS:
        return f"{name} has an ESS of {ess.min():.0f}, too few draws to compare"
    error = np.abs(draws.mean((0, 1)) - mean) / sd
    ratio = draws.std((0, 1)) / sd
    if (error > MEAN_ERROR + STANDARD_ERRORS / np.sqrt(ess)).any():
        return f"a mean of {name} is {error.max():.2f} posterior sds off"
    if (np.abs(ratio - 1) > SD_ERROR + STANDARD_ERRORS / np.sqrt(2 * ess)).any():
        return f"sds of {name} are {ratio.min():.2f} to {ratio.max():.2f} of the posterior's"
    return None
