"""The reference and the checks: NUTS on the same model, comparison with it, and nested R-hat."""

from pyro_scale.convergence import rhat_nested
from pyro_scale.split import uncertainty

from .comparison import compare
from .reference import nuts

__all__ = ["compare", "nuts", "rhat_nested", "uncertainty"]
