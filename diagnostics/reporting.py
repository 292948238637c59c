"""A report and a summary of a posterior, in memory or in a file."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from pyro_scale.errors import ArgumentError

from .evidence import gather
from .facts import title
from .page import document
from .sections import made
from .tables import table_text
from .verdicts import counted, verdict

if TYPE_CHECKING:
    from pyro_scale.posterior import Posterior


def report(posterior: Posterior | str | Path, path: str | Path, reference: Posterior | None = None) -> Path:
    """Writes one HTML file that says whether a posterior is right, and where it is wrong.

    It opens offline, on a phone and on paper: the verdict with what to change, a summary with bad values marked,
    traces, ranks, autocorrelation, growth of effective sample sizes, pairs, temperatures, predictive checks,
    calibration, and what it takes to repeat the run. What cannot be shown is named with the reason. Of many values the
    worst are shown.

    Args:
        posterior: as `infer` returns it, or the path of a saved one; predictive checks take the model, and so the
            former or `ps.load(path, model, data)`.
        path: of the HTML file, in a folder that exists; what is there is replaced when the report is complete.
        reference: another posterior of the same model, as from `nuts`, to compare with; None for no comparison.

    Returns:
        The path.

    Raises:
        ArgumentError: one of the arguments is something else.
        OSError: the path cannot be written; before any work.
        FileFormatError: the posterior's file was not written by `Posterior.save`.

    Example:
        >>> import tempfile, torch
        >>> from pyro_scale import Posterior
        >>> draws = {"mu": torch.randn(4, 100, generator=torch.Generator().manual_seed(0))}
        >>> about = {"num_steps": 100, "step_size": None, "timing": {"sample": 1.0}, "settings": {"method": "exact"}}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     written = report(Posterior(draws, sample_stats={}, **about), folder + "/report.html")
        ...     "Traces" in written.read_text(encoding="utf-8")
        True
    """
    target = _target(path)
    if reference is not None and not hasattr(reference, "draws"):
        raise ArgumentError(f"reference is a {type(reference).__name__}; it must be a Posterior, as from nuts.")
    try:
        handle, name = tempfile.mkstemp(prefix=".pyro_scale-", suffix=".html", dir=target.parent)
    except OSError as error:
        raise type(error)(
            error.errno, f"nothing can be written into this folder ({error.strerror})", str(path)
        ) from None
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            evidence = gather(posterior, reference)
            first = verdict(evidence)
            file.write(document(title(evidence), first, *made(evidence)))
        os.chmod(name, 0o666 & ~_umask())  # of a temporary file nobody else may read it
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise
    return Path(path)


def summary(posterior: Posterior | str | Path) -> pd.DataFrame:
    """Moments and quantiles of every value, with what tells how far they can be trusted.

    Args:
        posterior: as `infer` returns it, or the path of a saved one.

    Returns:
        One row a value, of more than 256 so many, evenly spaced and at least one of every site. Columns, the same
        under ArviZ 0.x and 1.x, whose numbers the last five are:

        mean, sd, q5, median, q95: of the draws, with quantiles of 5 and 95 %.
        mcse_mean, mcse_sd: Monte Carlo standard errors; of independent draws where a normal was fitted.
        ess_bulk, ess_tail: effective sample sizes for the mean and for the 5 and 95 % quantiles.
        r_hat: NaN for a single chain.

        What has no chains, as a normal that was fitted, has no ess_bulk, ess_tail and r_hat (NaN), and what is fitted
        as points no Monte Carlo error either.

    Example:
        >>> import torch
        >>> from pyro_scale import Posterior
        >>> draws = {"mu": torch.arange(8.0).reshape(2, 4)}
        >>> table = summary(Posterior(draws, sample_stats={}, num_steps=4, step_size=None, timing={}, settings={}))
        >>> float(table.loc["mu", "mean"]), float(table.loc["mu", "median"])
        (3.5, 3.5)
    """
    return gather(posterior).table


def as_text(posterior: Posterior | str | Path) -> str:
    """The summary and the verdict, for a terminal."""
    evidence = gather(posterior)
    return f"{table_text(evidence.table)}\n\n{counted(evidence, len(evidence.names))}\n\n{evidence.health}"


def _target(path: object) -> Path:
    """Where to write, past symbolic links; raises what would otherwise be met after the work."""
    if not isinstance(path, (str, Path)) or not str(path):
        raise ArgumentError(f"path is {path!r}; it must be a string or a pathlib.Path, as 'report.html'.")
    target = Path(os.path.realpath(path))
    if target.suffix not in (".html", ".htm"):
        raise ArgumentError(f"path is '{path}'; it must end in .html, since a report is a page.")
    if target.is_dir():
        raise IsADirectoryError(f"'{path}' is a folder; name a file in it, as '{Path(path) / 'report.html'}'.")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"There is no folder '{target.parent}' to write '{target.name}' into; make it first.")
    return target


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
