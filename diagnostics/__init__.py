"""The reference and the checks: NUTS on the same model, what tells with it and without, and pages to look at."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyro_scale.convergence import rhat_nested
    from pyro_scale.split import uncertainty

    from .calibrated import calibration
    from .comparison import compare
    from .comparison_plot import plot_compare
    from .coverage import interval_coverage, pit
    from .detection import auroc, ood_auroc
    from .discrepancy import ksd
    from .function_space import predictive_convergence
    from .importance import khat
    from .leave_one_out import loo
    from .proper_scores import brier_score, crps
    from .reference import nuts
    from .reliability_diagram import expected_calibration_error, reliability
    from .reporting import report, summary
    from .simulated_calibration import sbc

__all__ = [
    "auroc",
    "brier_score",
    "calibration",
    "compare",
    "crps",
    "expected_calibration_error",
    "interval_coverage",
    "khat",
    "ksd",
    "loo",
    "nuts",
    "ood_auroc",
    "pit",
    "plot_compare",
    "predictive_convergence",
    "reliability",
    "report",
    "rhat_nested",
    "sbc",
    "summary",
    "uncertainty",
]

_HOMES = {
    "auroc": ".detection",
    "brier_score": ".proper_scores",
    "calibration": ".calibrated",
    "compare": ".comparison",
    "crps": ".proper_scores",
    "expected_calibration_error": ".reliability_diagram",
    "interval_coverage": ".coverage",
    "khat": ".importance",
    "ksd": ".discrepancy",
    "loo": ".leave_one_out",
    "nuts": ".reference",
    "ood_auroc": ".detection",
    "pit": ".coverage",
    "plot_compare": ".comparison_plot",
    "predictive_convergence": ".function_space",
    "reliability": ".reliability_diagram",
    "report": ".reporting",
    "rhat_nested": "pyro_scale.convergence",
    "sbc": ".simulated_calibration",
    "summary": ".reporting",
    "uncertainty": "pyro_scale.split",
}


def __getattr__(name: str) -> Any:
    """Imported when first used: a report of a saved file needs neither torch nor Pyro."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module 'pyro_scale.diagnostics' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
