"""The measurements that ship with the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def pima_columns() -> dict[str, Tensor]:
    """Pima Indians diabetes data, 768 women: column name -> `(768,)` in float64.

    From the National Institute of Diabetes and Digestive and Kidney Diseases, in the public domain. A value of 0 in
    glucose, pressure, triceps, insulin or mass stands for one that was not measured.
    """
    table = np.genfromtxt(Path(__file__).with_name("data") / "pima.csv", delimiter=",", names=True)
    return {name: torch.tensor(table[name]) for name in table.dtype.names or ()}


def standardised(columns: list[Tensor]) -> Tensor:
    """A column of ones, then each column with mean 0 and standard deviation 1: `(n, 1 + len(columns))`."""
    x = torch.stack(columns, -1)
    x = (x - x.mean(0)) / x.std(0)
    return torch.cat([torch.ones(len(x), 1, dtype=x.dtype), x], -1)
