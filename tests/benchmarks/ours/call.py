"""`ps.infer`, compiled where it can be."""

from __future__ import annotations

import inspect
from typing import Any

import pyro_scale as ps


def infer(*arguments: Any, **named: Any) -> ps.Posterior:
    if "jit_compile" in inspect.signature(ps.infer).parameters:
        named["jit_compile"] = True
    return ps.infer(*arguments, **named)
