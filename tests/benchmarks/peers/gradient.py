"""Forward and backward through a network by torch: time of a gradient."""

from __future__ import annotations

import torch
from clock import milliseconds
from networks import BATCH, make
from script import answer, parameters
from torch.nn.functional import cross_entropy

given = parameters()
torch.set_num_threads(1)
network, x, y = make(given["network"])


def once() -> None:
    rows = torch.randint(len(x), (BATCH,))
    network.zero_grad()
    cross_entropy(network(x[rows]), y[rows]).backward()


answer(processor_milliseconds=milliseconds(once, given["num_steps"]))
