r"""What a batch tells an extended Kalman filter: its gradient, and a root R of its information.

$R^\top R = \sum_n J_n^\top F_n J_n$ over the rows, each once. J is the Jacobian of the outputs of a row, the free
parameters of its distribution, in the position, and F what the distribution tells about them: `curvature/`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.curvature.dense import gradients_of_rows
from pyro_scale.curvature.hessian import NegativeHessian
from pyro_scale.curvature.jacobian import Linearised
from pyro_scale.derivative import grad_and_value
from pyro_scale.kernels.map import log_likelihood
from pyro_scale.types import Position


class Told(NamedTuple):
    """By the rows of a batch, each once.

    Attributes:
        gradient: of their log-likelihood, `(d,)`, in the order of the sites.
        log_likelihood: in nats; 0-d.
        root: R, `(rows, d)`, or some rows for each of the batch.
        clamped: outputs of which they tell nothing, because their log-likelihood is not concave; 0-d.
    """

    gradient: Tensor
    log_likelihood: Tensor
    root: Tensor
    clamped: Tensor


def told_by(target: Any, position: Position, batch: Any) -> Told:
    """At a position."""
    gradient, value = grad_and_value(partial(log_likelihood, target))(position, batch)
    linearised = Linearised(target, "ggn", position, list(position), batch)
    vector = tree.ravel(gradient)
    root = torch.cat([vector.new_zeros(0, len(vector)), *gradients_of_rows(linearised)]).detach()
    return Told(vector, value, root, torch.as_tensor(linearised.clamped))


def prior_curvature(target: Any, position: Position) -> NegativeHessian:
    """Minus the Hessian of the log prior."""
    return NegativeHessian(target.log_prior, position, list(position))
