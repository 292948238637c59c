"""The diagonal of the Gauss-Newton matrix of a minibatch by BackPACK, as laplace-torch adds it up."""

from __future__ import annotations

import numpy as np
import torch
from clock import milliseconds
from laplace.curvature import BackPackGGN
from networks import BATCH, make
from script import answer, parameters

given = parameters()
torch.set_num_threads(1)
network, x, y = make(given["network"])
backend = BackPackGGN(network, "classification")


def once() -> torch.Tensor:
    return backend.diag(x[:BATCH], y[:BATCH])[1]


np.save(given["draws"], once().detach().numpy())
answer(batch_milliseconds=milliseconds(once, given["number"]))
