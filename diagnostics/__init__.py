"""The reference and the checks: NUTS on the same model, and comparison with it."""

from .comparison import compare
from .reference import nuts

__all__ = ["compare", "nuts"]
