"""The scalar parameters of posteriors, by name, and the posteriors themselves, by label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_scale.errors import ArgumentError
from pyro_scale.posterior import Posterior
from pyro_scale.values import labels


class Parameters(NamedTuple):
    """Names, as "w[2, 0]", and draws, `(num_chains, num_samples, parameters)`."""

    names: list[str]
    values: Tensor

    def among(self, names: Sequence[str]) -> Parameters:
        """Those with these names, in this order."""
        if list(names) == self.names:
            return self
        place = {name: index for index, name in enumerate(self.names)}
        return Parameters(list(names), self.values[..., [place[name] for name in names]])

    @property
    def flat(self) -> Tensor:
        """Draws of all chains, `(num_chains * num_samples, parameters)`, in double precision."""
        return self.values.flatten(0, 1).double()


def shared_parameters(posteriors: Sequence[Posterior]) -> list[Parameters]:
    """Of each posterior the parameters that all have, in the order of the first."""
    found = [_parameters(posterior) for posterior in posteriors]
    common = set(found[0].names).intersection(*(each.names for each in found))
    shared = [name for name in found[0].names if name in common]
    if not shared:
        raise ArgumentError(
            f"The posteriors have no parameter in common: {found[0].names[:5]} and {found[1].names[:5]}. Compare "
            "posteriors of one model, or of models whose sites have the same names."
        )
    return [each.among(shared) for each in found]


def _parameters(posterior: Posterior) -> Parameters:
    names, values = [], []
    for site, value in posterior.draws.items():
        shape = value.shape[2:]
        names += labels(site, shape)
        values.append(value.detach().cpu().flatten(2) if shape else value.detach().cpu().unsqueeze(-1))
    return Parameters(names, torch.cat(values, -1))


def everyone(caller: str, posteriors: Sequence[Any], reference: Any) -> dict[str, Posterior]:
    """Label -> posterior, the reference first; repeated methods are numbered."""
    found = list(posteriors) if reference is None else [reference, *posteriors]
    if len(found) < 2:
        raise ArgumentError(f"{caller} got {len(found)} posterior; it needs one to judge and one to judge by.")
    for posterior in found:
        if not isinstance(posterior, Posterior):
            raise ArgumentError(f"{caller} got a {type(posterior).__name__}; it takes posteriors, as infer returns.")
    names = [str(posterior.settings.get("method", "unknown")) for posterior in found]
    labels = [name if names.count(name) == 1 else f"{name} {1 + names[:i].count(name)}" for i, name in enumerate(names)]
    return dict(zip(labels, found, strict=True))
