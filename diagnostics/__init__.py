"""The reference and the checks: NUTS on the same model, comparison with it, and what tells without a reference."""

from pyro_scale.convergence import rhat_nested

from .comparison import compare
from .importance import khat
from .leave_one_out import loo
from .reference import nuts
from .simulated_calibration import sbc

__all__ = ["compare", "khat", "loo", "nuts", "rhat_nested", "sbc"]
