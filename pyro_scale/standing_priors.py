"""A posterior that stands in the place of a model's prior: what was learned before is where learning goes on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pyro_scale import tree
from pyro_scale.compile import CompiledModel
from pyro_scale.data import names_of
from pyro_scale.errors import ArgumentError, MinibatchError
from pyro_scale.stored_gaussians import placed
from pyro_scale.types import Gaussian


def with_prior(compiled: CompiledModel, gaussian: Gaussian) -> CompiledModel:
    """The model with another prior, of its unconstrained position."""
    structure = replace(compiled.structure, prior=gaussian)
    return CompiledModel(compiled.model, compiled.data, structure, compiled.batch_size)


def prior_of(posterior: Any, compiled: CompiledModel) -> Gaussian:
    """What a posterior says of the latent sites of a model, in its floating type.

    Raises:
        ArgumentError: it is no posterior, has no normal approximation, or that of other sites; or the model has terms
            outside the rows that are no prior.
        MinibatchError: a latent site has a value for each row.
    """
    if not hasattr(posterior, "approximation") or not hasattr(posterior, "settings"):
        raise ArgumentError(
            f"prior is a {type(posterior).__name__}; it must be a posterior, as prior=ps.infer(model, data, 'vi_diag')."
        )
    gaussian: Gaussian | None = posterior.approximation
    if gaussian is None:
        raise ArgumentError(
            f"prior is a posterior by {posterior.settings.get('method', 'an unknown method')}, which has draws alone, "
            "and no normal distribution that a prior could be. Fit one to the earlier data by a Laplace or variational "
            "method or a Kalman filter, as method='vi_diag'."
        )
    if held := list(getattr(gaussian, "held", {})):
        raise ArgumentError(
            f"prior holds the site '{held[0]}' where it was, and does not say how wide it is. Fit it without sites=."
        )
    _check_sites(gaussian, compiled)
    found = placed(gaussian, compiled.data.dtype, compiled.data.device)
    if not bool(tree.ravel(found.mean).isfinite().all()) or not bool(found.log_det.isfinite()):
        raise ArgumentError("The approximation of prior is not finite. Fit it anew, and look at its health.")
    return found


def _check_sites(gaussian: Gaussian, compiled: CompiledModel) -> None:
    if compiled.local:
        raise MinibatchError(
            f"Site '{next(iter(compiled.local))}' has a value for each row, of which prior knows those of other rows. "
            "Leave prior out, or sum the site out in the model."
        )
    theirs = {name: tuple(leaf.shape) for name, leaf in gaussian.mean.items()}
    ours = {name: tuple(shape) for name, shape in compiled.latent.items()}
    if theirs.keys() != ours.keys():
        raise ArgumentError(
            f"prior is a posterior of {names_of(list(theirs))}, and the model's latent sites are "
            f"{names_of(list(ours))}. They must be the same."
        )
    for name, shape in ours.items():
        if theirs[name] != shape:
            raise ArgumentError(
                f"Site '{name}' has shape {shape} (unconstrained), and that of prior {theirs[name]}. Pass data and "
                "constants that give it the same shape."
            )
    for site in compiled.structure.of_kind("factor", "observed"):
        if site.rows is None:
            what = "is a factor" if site.kind == "factor" else "is observed once"
            raise ArgumentError(
                f"Site '{site.name}' {what}, for no row alone, and whether prior knows of it cannot be told. Put it in "
                "the plate of the rows, or leave it out of the model."
            )
