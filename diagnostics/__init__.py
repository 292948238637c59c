"""The reference and the checks: NUTS on the same model, comparison with it, and what tells without a reference."""

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
    "rhat_nested",
    "sbc",
    "uncertainty",
]
