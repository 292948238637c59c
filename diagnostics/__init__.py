"""The reference and the checks: NUTS on the same model, comparison with it, nested R-hat, and pages to look at."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyro_scale.convergence import rhat_nested

    from .comparison import compare
    from .reference import nuts
    from .reporting import report, summary

__all__ = ["compare", "nuts", "report", "rhat_nested", "summary"]

_HOMES = {
    "compare": ".comparison",
    "nuts": ".reference",
    "report": ".reporting",
    "rhat_nested": "pyro_scale.convergence",
    "summary": ".reporting",
}


def __getattr__(name: str) -> Any:
    """Imported when first used: a report of a saved file needs neither torch nor Pyro."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module 'pyro_scale.diagnostics' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
