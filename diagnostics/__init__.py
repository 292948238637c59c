"""The reference and the checks: NUTS on the same model, comparison with it, and whether predictions are calibrated."""

from pyro_scale.convergence import rhat_nested
from pyro_scale.split import uncertainty

from .calibrated import calibration
from .comparison import compare
from .comparison_plot import plot_compare
from .coverage import interval_coverage, pit
from .detection import auroc, ood_auroc
from .discrepancy import ksd
from .function_space import predictive_convergence
from .proper_scores import brier_score, crps
from .reference import nuts
from .reliability_diagram import expected_calibration_error, reliability

__all__ = [
    "auroc",
    "brier_score",
    "calibration",
    "compare",
    "crps",
    "expected_calibration_error",
    "interval_coverage",
    "ksd",
    "nuts",
    "ood_auroc",
    "pit",
    "plot_compare",
    "predictive_convergence",
    "reliability",
    "rhat_nested",
    "uncertainty",
]
