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
    chains = "1 chain" if num_chains == 1 else f"{num_chains:,} chains"
    draws = "1 draw" if num_samples == 1 else f"{num_samples:,} draws"
    values = "1 value" if evidence.num_values == 1 else f"{evidence.num_values:,} values"
    return f"{method}: {chains} of {draws}, {values}"


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
        rows.append(("steps of a chain", f"{steps:,}"))
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
