"""The reference and the checks: NUTS on the same model, and comparison with it."""

from .compare import compare
from .nuts import nuts

__all__ = ["compare", "nuts"]
