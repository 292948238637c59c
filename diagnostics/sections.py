"""The sections of a report, each with what it takes; one that cannot be made is left out with a sentence."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pyro_scale.errors import PyroScaleError

from . import chain_plots, facts, joint_plots, over_time, predictions, reference_tables, verdicts
from .evidence import Evidence

logger = logging.getLogger("pyro_scale")

Needs = Callable[[Evidence], str]

LEAST_PAIRED = 10
NO_CHAINS = {
    "independent": "the draws are no chains: each is an independent one of the normal that was fitted.",
    "fits": "the draws are no chains: each is a fit by itself.",
}


class Section(NamedTuple):
    """A part of the page.

    Attributes:
        title: its heading.
        body: its HTML.
        needs: why it cannot be made, in words that end a sentence and say what to do; "" if it can.
    """

    title: str
    body: Callable[[Evidence], str]
    needs: Needs = lambda evidence: ""


def draws(number: int) -> Needs:
    """At least so many draws a chain."""

    def needs(evidence: Evidence) -> str:
        have = evidence.values.shape[1]
        return "" if have >= number else f"it takes {number} draws a chain, and there are {have}. Raise num_samples."

    return needs


def chains(number: int, num_samples: int) -> Needs:
    """At least so many chains, of so many draws."""

    def needs(evidence: Evidence) -> str:
        have = len(evidence.values)
        if evidence.trace is not None:
            return NO_CHAINS[evidence.drawn_as]
        if have < number:
            return f"it takes {number} chains, and there are {have}. Raise num_chains."
        return draws(num_samples)(evidence)

    return needs


def statistic(name: str, what: str) -> Needs:
    """A statistic of chains, of two draws or more."""

    def needs(evidence: Evidence) -> str:
        if evidence.trace is not None:
            return NO_CHAINS[evidence.drawn_as]
        if name not in evidence.stats:
            return what
        return draws(2)(evidence)

    return needs


def _pairs(evidence: Evidence) -> str:
    number = int(np.prod(evidence.values.shape[:2]))
    if evidence.drawn_as == "fits" and number < LEAST_PAIRED:
        return NO_CHAINS["fits"] if number == 1 else f"it takes {LEAST_PAIRED} fits, and there are {number}."
    moving = int((evidence.table["sd"] > 0).sum())
    if moving < 2:
        return f"it takes two values that move, and there are {moving}."
    if number >= LEAST_PAIRED:
        return ""
    return f"it takes {LEAST_PAIRED} draws, and there are {number}. Raise num_samples or num_chains."


def _superchains(evidence: Evidence) -> str:
    if evidence.trace is not None:
        return NO_CHAINS[evidence.drawn_as]
    if not evidence.settings.get("num_superchains"):
        return "chains did not start in groups. Run infer(..., num_superchains=4) with several times as many chains."
    return ""


def _objective(evidence: Evidence) -> str:
    if evidence.trace is None:
        return "chains sample, and climb nothing."
    have = evidence.trace.shape[1]
    return "" if have > 1 else f"it takes two steps, and the fit took {have}: Newton's method found the mode."


def _reference(evidence: Evidence) -> str:
    if evidence.reference is None:
        return "there is no reference. Pass reference=ps.diagnostics.nuts(model, data)."
    if evidence.posterior is None:
        return "the posterior is a file. Pass posterior=ps.load(path)."
    return ""


def _timing(evidence: Evidence) -> str:
    return "" if evidence.record.get("timing") else "the run did not keep its times."


def _comparison(evidence: Evidence) -> str:
    return reference_tables.comparison(evidence) + joint_plots.overlays(evidence)


SECTIONS = (
    Section("Summary", verdicts.summary_table),
    Section("Against the reference", _comparison, _reference),
    Section("Traces", chain_plots.traces, chains(1, 2)),
    Section("Ranks", chain_plots.ranks, chains(2, 20)),
    Section("Autocorrelation", chain_plots.autocorrelation, chains(1, 4)),
    Section("Effective sample size", chain_plots.growth, chains(1, 16)),
    Section("Superchains", chain_plots.superchains, _superchains),
    Section("Pairs", joint_plots.pairs, _pairs),
    Section("Log posterior", over_time.log_posterior, statistic("lp", "the run kept no log posterior.")),
    Section("Temperature", over_time.temperatures, statistic("kinetic_temperature", "the method has no momenta.")),
    Section("Objective", over_time.objective, _objective),
    Section("Predictive check", predictions.checks, predictions.why_not),
    Section("Calibration", predictions.calibration, predictions.why_not),
    Section("Settings", facts.settings),
    Section("Time", facts.timing, _timing),
    Section("Versions", facts.versions),
)


def made(evidence: Evidence) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Titles with HTML of the sections that could be made, and with reasons of the others, a reason once."""
    there: list[tuple[str, str]] = []
    missing: list[tuple[str, str]] = []
    for section in SECTIONS:
        reason = section.needs(evidence)
        if reason:
            missing.append((section.title, reason))
            continue
        try:
            there.append((section.title, section.body(evidence)))
        except Exception as error:  # one section that fails does not take the others with it
            logger.info("Section %r of the report failed.", section.title, exc_info=True)
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            told = line if isinstance(error, PyroScaleError) else f"{type(error).__name__}: {line}"
            missing.append((section.title, told))
    by_reason: dict[str, list[str]] = {}
    for title, reason in missing:
        by_reason.setdefault(reason, []).append(title)
    return there, [(", ".join(titles), reason) for reason, titles in by_reason.items()]
