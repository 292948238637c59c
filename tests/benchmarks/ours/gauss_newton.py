"""The diagonal of the Gauss-Newton matrix of a minibatch by pyro_scale, as `laplace_diag` adds it up."""

from __future__ import annotations

import numpy as np
import torch
from clock import milliseconds
from networks import BATCH, classifier, make
from script import answer, parameters

import pyro_scale as ps
from pyro_scale.types import Settings

given = parameters()
torch.set_num_threads(1)
network, x, y = make(given["network"])
compiled = ps.compile_model(classifier(network), {"x": x, "y": y}, batch_size=BATCH)
bound = ps.kernels.DiagonalLaplace().bind(compiled, len(x))
state = bound.init({name: weights.detach() for name, weights in network.named_parameters()}, ())
batch = compiled.batch(torch.arange(BATCH))


def once() -> torch.Tensor:
    after, _ = bound.update(state, batch, (), Settings(None, 1.0))
    return torch.cat([leaf.flatten() for leaf in after.diagonal.values()])


np.save(given["draws"], once().numpy())
answer(batch_milliseconds=milliseconds(once, given["number"]))
