"""The linearised predictive distribution of a network at new inputs by laplace-torch, batch by batch."""

from __future__ import annotations

import time

import numpy as np
import torch
from laplace import Laplace
from laplace.curvature import BackPackGGN
from networks import BATCH, make
from script import answer, parameters
from torch.utils.data import DataLoader, TensorDataset

BLOCK = 100
"""Inputs at a time, with which it is about as fast as it can be."""

given = parameters()
torch.set_num_threads(1)
network, x, y = make(given["network"])
found = Laplace(network, "classification", "all", "diag", prior_precision=1.0, backend=BackPackGGN)
found.fit(DataLoader(TensorDataset(x[:BATCH], y[:BATCH]), batch_size=BATCH))
began = time.process_time()
blocks = x[: given["number"]].split(BLOCK)
predicted = torch.cat([found(block, pred_type="glm", link_approx="probit").detach() for block in blocks])
seconds = time.process_time() - began
np.save(given["draws"], predicted.numpy())
answer(seconds=seconds)
