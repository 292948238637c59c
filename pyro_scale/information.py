r"""What an observed site tells about the parameters of its distribution: Fisher's information, row by row.

Parameters $\eta$ are free numbers: what `biject_to` maps to those that the distribution takes, so that information is
asked for where any number is admitted. Only those that the latent sites move count. Information is a root S,
$S S^\top = F$, and comes

1. from the values where they are finitely many: its columns are $\sqrt{p(y)} \, \nabla_\eta \log p(y)$, turned so that
   one is 0 and left out;
2. from the Hessian of the Kullback-Leibler divergence of the distribution at hand to its neighbours, which is F at
   equality (Kullback (1959), section 2.6), where torch knows that divergence;
3. else from the Hessian of $-\log p$ at the observed value, without its negative eigenvalues.

In natural parameters of an exponential family the third is the same as the others (Martens (2020), section 9).

References:
    Kullback (1959), Information theory and statistics.
    Martens (2020), New insights and perspectives on the natural gradient method, JMLR.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import biject_to, kl_divergence

from pyro_scale.errors import ModelError
from pyro_scale.outputs import innermost, parameters, settings
from pyro_scale.records import PyroSite, append_axes, unvalidated, user_scale
from pyro_scale.rows import RowAxis
from pyro_scale.sites import Structure
from pyro_scale.types import Information


def information_of(site: PyroSite, rows: RowAxis) -> Information:
    """The free parameters of a site's distribution, those that need a gradient, and a root of their information.

    Args:
        site: observed.
        rows: the axis of its log density that follows the rows.

    Raises:
        ModelError: the distribution does not name its parameters, or one has no map from free numbers.
    """
    with unvalidated(site["fn"]):
        family = _Family.of(site, rows)
        outputs = family.outputs()
        root, clamped = _root(family, outputs.detach())
    return Information(outputs, root * family.weight.clamp(min=0).sqrt()[..., None, None], clamped)


def rows_of_terms(structure: Structure) -> dict[str, RowAxis]:
    """Observed site -> the axis of its log density that follows the rows.

    Raises:
        ModelError: a term of the likelihood has no outputs of which its rows could tell.
    """
    found = {}
    for site in structure.of_kind("observed", "factor", "enumerated"):
        reason = ""
        if site.kind == "enumerated":
            reason = "is discrete and summed out, so that the likelihood is a mixture"
        elif site.kind == "factor" and site.rows is not None:
            reason = "is a factor, which has no parameters"
        elif site.rows is None and site.kind == "observed" and structure.minibatch_error is not None:
            reason = "is one joint event of all rows"
        if reason:
            raise ModelError(
                f"Site '{site.name}' {reason}, and has no GGN. Use curvature='hessian', or 'fisher' where each row has "
                "a log-likelihood."
            )
        if site.rows is not None:  # else a term of the prior
            found[site.name] = site.rows
    return found


@dataclass(frozen=True)
class _Family:
    """A site's distribution, its batch axes reshaped to rows and the elements of a row.

    Attributes:
        fn: within `to_event` and `mask`.
        value: observed, `(n, elements, *event)`.
        weight: of each log density, `(n, elements)`.
        moved: parameter -> value, of those that depend on latent sites.
        held: the others.
        maps: parameter -> from free numbers.
    """

    fn: Any
    value: Tensor
    weight: Tensor
    moved: Mapping[str, Tensor]
    held: Mapping[str, Tensor]
    maps: Mapping[str, Any]

    @classmethod
    def of(cls, site: PyroSite, rows: RowAxis) -> _Family:
        fn = innermost(site["fn"])
        events = site["value"].ndim - fn.event_dim
        shape = torch.broadcast_shapes(fn.batch_shape, site["value"].shape[:events])
        inside = _events(site["fn"]) - (site["fn"].reinterpreted_batch_ndims if rows.unwrap else 0)
        axis = rows.axis - inside

        def by_row(leaf: Tensor, own: int) -> Tensor:
            """`own` axes at the end stay, the others become rows and elements."""
            ends = leaf.shape[leaf.ndim - own :]
            leaf = leaf.expand(*shape, *ends).movedim(len(shape) + axis, 0)
            return leaf.reshape(leaf.shape[0], -1 if leaf.shape[0] else 1, *ends)

        moved, held, maps = {}, {}, {}
        for name, leaf in parameters(site).items():
            constraint = fn.arg_constraints[name]
            leaf = torch.as_tensor(leaf)
            shaped = by_row(leaf, constraint.event_dim)
            if constraint.is_discrete or not leaf.requires_grad:
                held[name] = shaped
            else:
                moved[name], maps[name] = shaped, _map(site["name"], fn, name)
        return cls(fn, by_row(site["value"], fn.event_dim), by_row(_weight(site), 0), moved, held, maps)

    def outputs(self) -> Tensor:
        """`(n, elements, k)`."""
        free = [
            self.maps[name].inv(leaf).flatten(2) if leaf.ndim > 2 else self.maps[name].inv(leaf).unsqueeze(-1)
            for name, leaf in self.moved.items()
        ]
        return torch.cat(free, -1) if free else self.value.new_zeros(*self.weight.shape, 0)

    def at(self, outputs: Tensor) -> Any:
        """The distribution at free numbers `(..., n, elements, k)`."""
        values, first = {}, 0
        for name, leaf in self.moved.items():
            shape = self.maps[name].inverse_shape(leaf.shape)[2:]
            part = outputs[..., first : first + shape.numel()]
            values[name] = self.maps[name](part.reshape(*part.shape[:-1], *shape))
            first += shape.numel()
        return type(self.fn)(**values, **self.held, **settings(self.fn), validate_args=False)


def _events(fn: Any) -> int:
    """Axes that `to_event` has taken for those of an event."""
    number = 0
    while isinstance(fn, (dist.Independent, dist.MaskedDistribution)):
        number += fn.reinterpreted_batch_ndims if isinstance(fn, dist.Independent) else 0
        fn = fn.base_dist
    return number


def _weight(site: PyroSite) -> Tensor:
    """Scale and mask, of the innermost distribution's log densities."""
    fn: Any = site["fn"]
    weight = torch.as_tensor(scale_and_mask(torch.ones(fn.batch_shape), user_scale(site), site["mask"]))
    while isinstance(fn, (dist.Independent, dist.MaskedDistribution)):
        if isinstance(fn, dist.Independent):
            weight = append_axes(weight, fn.reinterpreted_batch_ndims)
        else:
            weight = weight * torch.as_tensor(fn._mask, dtype=weight.dtype, device=weight.device)
        fn = fn.base_dist
    return weight


def _map(site: str, fn: Any, name: str) -> Any:
    try:
        return biject_to(fn.arg_constraints[name])
    except NotImplementedError as error:
        raise ModelError(
            f"Site '{site}' is {type(fn).__name__}, whose parameter '{name}' has no map from free numbers, so that its "
            "likelihood has no GGN. Use curvature='fisher' or 'hessian'."
        ) from error


def _root(family: _Family, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """S of the rows' elements, `(n, elements, k, r)`, and how many eigenvalues were negative."""
    none = torch.zeros((), dtype=torch.long, device=outputs.device)
    if outputs.shape[-1] == 0:
        return outputs.unsqueeze(-1), none
    if type(family.fn) is dist.Categorical and list(family.moved) == ["logits"]:
        return _of_classes(outputs), none
    with torch.enable_grad():
        if family.fn.has_enumerate_support:
            with suppress(NotImplementedError):  # a Binomial whose rows have different counts
                return _of_values(family, outputs), none
        here = family.at(outputs)
        with suppress(NotImplementedError):
            return _of_hessian(lambda free: kl_divergence(here, family.at(free)), outputs)
        return _of_hessian(lambda free: -family.at(free).log_prob(family.value), outputs)


def _of_classes(logits: Tensor) -> Tensor:
    """As `_of_values`, in closed form: the score of class c is 1 at c, less the probabilities."""
    probabilities = logits.softmax(-1)
    amplitudes = probabilities.sqrt()
    scores = torch.eye(logits.shape[-1], dtype=logits.dtype, device=logits.device) - probabilities.unsqueeze(-1)
    return _turned(scores, amplitudes)


def _of_values(family: _Family, outputs: Tensor) -> Tensor:
    values = family.fn.enumerate_support(expand=False)
    values = values.reshape(len(values), 1, 1, *family.fn.event_shape)
    free = outputs.expand(len(values), *outputs.shape).clone().requires_grad_()
    log_prob = family.at(free).log_prob(values)
    (scores,) = torch.autograd.grad(log_prob.sum(), free)
    root = _turned(scores.movedim(0, -1), (log_prob.detach() / 2).exp().movedim(0, -1))
    return root if root.shape[-1] <= root.shape[-2] else _root_of(root @ root.mT)[0]


def _turned(scores: Tensor, amplitudes: Tensor) -> Tensor:
    """Scores `(..., k, r)` times roots of the probabilities of their values, `(..., r)`, in r - 1 columns.

    Scores have mean 0: a reflection that turns the amplitudes, of length 1, to the last value leaves a column of 0.
    """
    amplitudes = amplitudes.unsqueeze(-2)
    root = scores * amplitudes
    return root[..., :-1] - root[..., -1:] * amplitudes[..., :-1] / (1 + amplitudes[..., -1:])


def _of_hessian(function: Callable[[Tensor], Tensor], outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Of a function of free numbers that is one of each element alone."""
    free = outputs.clone().requires_grad_()
    (slope,) = torch.autograd.grad(function(free).sum(), free, create_graph=True)
    columns = [torch.autograd.grad(each.sum(), free, retain_graph=True)[0] for each in slope.unbind(-1)]
    return _root_of(torch.stack(columns, -1))


def _root_of(matrix: Tensor) -> tuple[Tensor, Tensor]:
    if matrix.shape[-1] == 1:
        return matrix.clamp(min=0).sqrt(), (matrix < 0).sum()
    eigenvalues, basis = torch.linalg.eigh((matrix + matrix.mT) / 2)
    rounding = 100 * torch.finfo(matrix.dtype).eps * eigenvalues.abs().amax(-1, keepdim=True)
    return basis * eigenvalues.clamp(min=0).sqrt().unsqueeze(-2), (eigenvalues < -rounding).sum()
