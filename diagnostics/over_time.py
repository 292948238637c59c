"""Numbers of a run along its draws or steps: log posterior, temperatures of the momenta, losses."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .chain_plots import line, shown_chains
from .evidence import Evidence
from .figures import CHAINS, INK, WIDE, axes_of, figure, panel, picture

MOST_SITES = 6
FEW = 30
"""Steps that are marked one by one."""


def log_posterior(evidence: Evidence) -> str:
    """The log posterior of every chain."""

    def draw(on: Any) -> None:
        axes = axes_of(on, xlabel="draw")
        for colour, chain in zip(CHAINS, shown_chains(evidence.stats["lp"]), strict=False):
            axes.plot(*line(chain), color=colour, linewidth=0.6, alpha=0.8)

    minibatched = evidence.settings.get("batch_size") is not None
    return figure(
        [panel("", picture(draw, "Log posterior over draws", width=WIDE, height=1.9), wide=True)],
        "Log posterior density at the draws, in nats, a colour a chain"
        + (
            ", as the minibatch of the step estimates it, whose noise adds to that of the draws. "
            if minibatched
            else ". "
        )
        + "A trend means that warm-up was too short; chains at different levels have found different modes.",
    )


def temperatures(evidence: Evidence) -> str:
    """Running means of the kinetic temperature, site by site."""
    stats = evidence.stats["kinetic_temperature"]
    wanted = evidence.settings.get("temperature")
    names = list(evidence.record.get("latent", {}))
    expected = _at_step_size(evidence)
    panels = []
    for index in range(min(stats.shape[-1], MOST_SITES)):
        name = names[index] if len(names) == stats.shape[-1] else f"site {index}"
        means = np.cumsum(stats[..., index], 1) / np.arange(1, stats.shape[1] + 1)

        def draw(on: Any, means: NDArray[Any] = means) -> None:
            axes = axes_of(on, xlabel="draw")
            for colour, chain in zip(CHAINS, shown_chains(means), strict=False):
                axes.plot(*line(chain), color=colour)
            if isinstance(wanted, (int, float)):
                axes.axhline(wanted, color=INK, linestyle="--", linewidth=0.7)
            if expected is not None:
                axes.axhline(expected, color=INK, linestyle=":", linewidth=1.0)

        panels.append(panel(name, picture(draw, f"Kinetic temperature of {name}")))
    left = stats.shape[-1] - len(panels)
    return figure(
        panels,
        "Mean square of the momenta up to each draw, in units of the posterior's, a colour a chain; dashed the "
        "temperature that was asked for"
        + (
            ". Lines should level off near it, somewhat above at a large step_size"
            if expected is None
            else ", dotted what momenta have at this step_size where the posterior is normal, and where lines should "
            "level off"
        )
        + ". Lines that stay well above tell of minibatch noise that heats the chains."
        + (f" {left} more sites are not shown." if left else ""),
    )


def _at_step_size(evidence: Evidence) -> float | None:
    """Mean square of the momenta at the run's step size, in whitened coordinates and without minibatches' noise."""
    kernel = getattr(evidence.posterior, "kernel", None)
    if kernel is None or not evidence.settings.get("tuning") or not isinstance(kernel.step_size, float):
        return None
    from pyro_scale.law import law_of  # a kernel comes with torch

    found = law_of(kernel, kernel.step_size).momentum_sd ** 2 * float(evidence.settings.get("temperature") or 0)
    return found if 0 < found < float("inf") else None


def objective(evidence: Evidence) -> str:
    """What a fit climbed, over its steps."""
    assert evidence.trace is not None
    curves = evidence.trace
    late = curves[:, curves.shape[1] // 10 :]
    finite = late[np.isfinite(late)]

    def draw(on: Any) -> None:
        axes = axes_of(on, xlabel="step")
        axes.xaxis.get_major_locator().set_params(integer=True)
        for colour, curve in zip(CHAINS, shown_chains(curves), strict=False):
            axes.plot(*line(curve), color=colour, linewidth=0.7, marker="o" if len(curve) < FEW else "", markersize=3)
        if finite.size and np.ptp(finite) > 0:
            low, high = np.quantile(finite, (0.0, 1.0))
            axes.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))

    if _in_one_pass(evidence):
        caption = (
            "Log-likelihood of the rows of each step, in nats, as the filter stood before it learnt from them. It "
            "rises while there is much to learn, and then scatters around a level; the last step may have fewer rows."
        )
    else:
        caption = (
            "What was climbed, in nats, step by step: the log posterior or, of variational inference, the evidence "
            "lower bound, as each step's rows estimate it"
            + (", a colour a fit" if len(curves) > 1 else "")
            + ". The first tenth may leave the picture. It should have levelled off: a slope at the end asks for more "
            "steps (warmup_steps), a level that jumps for a smaller step_size."
        )
    picked = panel("", picture(draw, "Objective over steps", width=WIDE, height=1.9), wide=True)
    return figure([picked], caption)


def _in_one_pass(evidence: Evidence) -> bool:
    """Whether it was a filter, which sees every row once and climbs nothing."""
    return str(evidence.settings.get("steps_run", "")).endswith("in one pass")
