"""What it takes to repeat a run: settings, time, versions."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

from .evidence import Evidence
from .tables import definitions, number

PACKAGES = ("pyro-scale", "torch", "pyro-ppl", "arviz", "numpy", "matplotlib")


def title(evidence: Evidence) -> str:
    """Method and size in a line."""
    method = evidence.settings.get("method", "Posterior")
    num_chains, num_samples, _ = evidence.values.shape
    draws, values = so_many(num_samples, "draw"), so_many(evidence.num_values, "value")
    if evidence.drawn_as == "independent":
        return f"{method}: {draws} of a normal, {values}"
    if evidence.drawn_as == "fits":
        number = num_chains * num_samples
        return f"{method}: {'a point' if number == 1 else f'{number:,} points'}, {values}"
    return f"{method}: {so_many(num_chains, 'chain')} of {draws}, {values}"


def so_many(number: int, what: str) -> str:
    """In words, as "1 draw" or "1,000 draws"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def settings(evidence: Evidence) -> str:
    """All settings, those of tuning apart."""
    own = {name: value for name, value in evidence.settings.items() if not isinstance(value, dict)}
    sizes = {"num_steps": evidence.record.get("num_steps"), "step_size": evidence.record.get("step_size")}
    parts = [definitions([*own.items(), *((name, value) for name, value in sizes.items() if name not in own)])]
    for name, value in evidence.settings.items():
        if isinstance(value, dict) and value:
            parts.append(f"<h3>{definition_name(name)}</h3>{definitions(list(value.items()))}")
    return "".join(parts)


def timing(evidence: Evidence) -> str:
    """Seconds, by what they went into."""
    seconds: dict[str, float] = evidence.record["timing"]
    total = sum(seconds.values())
    steps = evidence.record.get("num_steps")
    rows: list[tuple[str, Any]] = [(name, f"{number(value)} s") for name, value in seconds.items()]
    rows.append(("in all", f"{number(total)} s"))
    bulk = evidence.table["ess_bulk"].min()
    if bulk == bulk and total > 0:
        rows.append(("smallest ESS, mean, a second", number(bulk / total)))
    if steps:
        rows.append(("steps of a chain" if evidence.trace is None else "steps of a fit", f"{steps:,}"))
    return definitions(rows)


def versions(evidence: Evidence) -> str:
    """Of what wrote the file, if it is one, and of what wrote this page."""
    rows: list[tuple[str, Any]] = [
        (f"run: {name.replace('_', ' ')}", evidence.attributes[name])
        for name in ("created_at", "inference_library_version")
        if name in evidence.attributes
    ]
    rows.append(("Python", platform.python_version()))
    for package in PACKAGES:
        try:
            rows.append((package, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return definitions(rows)


def definition_name(name: str) -> str:
    """A key of the record as a heading."""
    return name.replace("_", " ").capitalize()
