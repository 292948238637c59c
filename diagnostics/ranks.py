"""Ranks of true values among draws: tests of their uniformity and symmetry, a table and a picture."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

from .psis import Array

TESTS = ("uniformity", "width", "asymmetry")
LEVEL = 0.05
"""An exact method fails so often, at most."""
POWER, RANKED = 0.9, 1.2
RANKS_A_COLUMN = 4
"""With fewer, the covariance of the scores of so many parameters is not known well enough to test their means."""
LEAST_RANKS = 20
RANKS_A_BAR = 20
BARS = (4, 20)
BAND = 0.99
"""Share of the bars of an exact method that lie within the band, as in Talts et al. (2018)."""
MOST_PANELS = 12
PANELS_A_ROW = 4


@dataclass(frozen=True)
class Ranks:
    """Ranks of simulated values among the draws of their posteriors; printed as a table.

    Attributes:
        ranks: a row for each simulation, a column for each parameter: the share of draws below the value that the data
            were simulated from, made continuous at random. Uniform on 0 to 1 if the method is exact.
        num_draws: how many draws each value was ranked among.
        failures: number of simulation -> what its inference met; these have no ranks.
        unsound: simulations whose run failed checks of its own.
    """

    ranks: pd.DataFrame
    num_draws: int
    failures: Mapping[int, str] = field(default_factory=dict)
    unsound: int = 0

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row for each parameter.

        uniformity: p-value of the chi-squared test on the bars of the histogram, of any error of the draws' law.
        width: p-value of the sum of squared normal scores of the ranks about their mean, of draws that are too narrow
            or too wide.
        asymmetry: p-value of the sum of normal scores, of draws that are too low or too high. No other test finds a
            normal posterior that is moved more often.
        p_value: the smallest one, times the number of all tests (Bonferroni): below it by chance in no more cases.
        mean_error, sd_ratio: by how many posterior sds draws are too high, and their sd relative to the posterior's, as
            far as posteriors are normal. The second is pulled towards 1, and above it where draws are far off: a rank
            among L draws limits the size of a score.
        verdict: what is wrong, in words.
        """
        from scipy.stats import chi2, norm

        values = self.ranks.to_numpy()
        bars = num_bars(len(values))
        counts, expected = self._counts(bars), len(values) / bars
        enough = len(values) >= LEAST_RANKS
        uniformity = chi2.sf(((counts - expected) ** 2 / expected).sum(0), bars - 1)
        scores = norm.ppf(values)
        asymmetry = 2 * norm.sf(np.abs(scores.sum(0)) / len(values) ** 0.5)
        squares = ((scores - scores.mean(0)) ** 2).sum(0)  # about it, as draws that are moved only are not too narrow
        width = 2 * np.minimum(chi2.cdf(squares, len(values) - 1), chi2.sf(squares, len(values) - 1))
        tests = dict(zip(TESTS, (uniformity, width, asymmetry), strict=True))
        table = pd.DataFrame(tests if enough else dict.fromkeys(TESTS, np.nan), self.ranks.columns)
        table["p_value"] = (table.min(axis=1) * self.num_tests).clip(upper=1)
        table["mean_error"] = -scores.mean(0) / scores.std(0)
        table["sd_ratio"] = 1 / scores.std(0)
        table["verdict"] = [self._verdict(row) for row in table.itertuples()]
        return table

    @cached_property
    def together(self) -> float:
        """p-value of Hotelling's test that the normal scores of all parameters have mean 0.

        It finds draws that are moved a little in many parameters, of which none tells by itself. NaN of one parameter,
        or of fewer than 4 ranks for each.
        """
        from scipy.stats import f, norm

        number, size = self.ranks.shape
        if size < 2 or number < max(LEAST_RANKS, RANKS_A_COLUMN * size):
            return float("nan")
        scores = norm.ppf(self.ranks.to_numpy())
        mean, covariance = scores.mean(0), np.cov(scores, rowvar=False)
        squared = number * mean @ np.linalg.pinv(covariance, hermitian=True) @ mean
        return float(f.sf(squared * (number - size) / (size * (number - 1)), size, number - size))

    @property
    def num_tests(self) -> int:
        """Tests that were made in all."""
        return len(TESTS) * len(self.ranks.columns) + int(np.isfinite(self.together))

    @property
    def p_value(self) -> float:
        """Of all tests together: the smallest p-value, times their number; NaN with fewer than 20 ranks."""
        return float(np.fmin(self.table["p_value"].min(), np.minimum(1.0, self.together * self.num_tests)))

    @property
    def passed(self) -> bool:
        """Whether p_value is above 0.05: an exact method fails by chance in at most one of twenty calls."""
        return self.p_value > LEVEL

    @property
    def detectable(self) -> tuple[float, float]:
        r"""Errors of one normal parameter that are found in 90 % of runs of this size: a shift, and of the sd.

        With α the level divided by the number of tests, n simulations find a shift, in posterior sds, of
        $(z_{1 - \alpha / 2} + z_{0.9}) / \sqrt n$. The error of an sd, relative to itself, would be this over
        $\sqrt 2$; ranks among 100 draws, which limit the scores, find one that is larger by a fifth (measured).
        """
        from scipy.stats import norm

        reach = norm.isf(LEVEL / (2 * self.num_tests)) + norm.isf(1 - POWER)
        shift = float(reach / len(self.ranks) ** 0.5)
        return shift, RANKED * shift / 2**0.5

    def plot(self) -> Figure:
        """Rank histograms with the band that 99 % of the bars of an exact method lie in; at most the 12 worst."""
        from matplotlib.figure import Figure

        worst = self.table["p_value"].nsmallest(MOST_PANELS).index
        names = [name for name in self.table.index if name in worst]
        columns = min(PANELS_A_ROW, len(names))
        rows = -(-len(names) // columns)
        figure = Figure(figsize=(max(2.6 * columns, 4.8), 2.3 * rows + 1.1), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
        for panel, name in zip(panels, names, strict=False):
            self._draw(panel, name)
        for panel in panels[len(names) :]:
            panel.remove()
        figure.supxlabel("rank of the true value among the draws", fontsize="medium")
        figure.supylabel("simulations", fontsize="medium")
        figure.suptitle(
            f"{len(self.ranks)} simulations\n{BAND:.0%} of the bars of an exact method lie in the grey band\n"
            "∪ draws too narrow   ∩ too wide   ╱ too low   ╲ too high",
            fontsize="medium",
        )
        return figure

    def __str__(self) -> str:
        heading = f"SBC: {'passed' if self.passed else 'FAILED'}, p = {self.p_value:.2g} of {self.num_tests} tests"
        notes = [f"{heading}; {len(self.ranks)} simulations, ranked among {self.num_draws} draws"]
        if len(self.ranks) < LEAST_RANKS:
            notes = [f"SBC: {len(self.ranks)} simulations are too few to test; at least {LEAST_RANKS} are needed"]
        else:
            notes.append(
                "Found in 9 of 10 such runs: draws that are moved by {:.2f} posterior sds, or an sd that is wrong by "
                "{:.0%}".format(*self.detectable)
            )
            if self.together * self.num_tests <= LEVEL and not any(self.table["verdict"]):
                notes.append(f"All parameters together are moved (p = {self.together:.2g}), none by itself for certain")
        if self.failures:
            number, first = next(iter(self.failures.items()))
            notes.append(f"{len(self.failures)} simulations failed and have no ranks, the first at {number}: {first}")
        if self.unsound:
            notes.append(f"{self.unsound} runs failed checks of their own (posterior.health): ranks tell of these too.")
        shown = self.table.nsmallest(MOST_PANELS, "p_value") if len(self.table) > MOST_PANELS else self.table
        told = [textwrap.fill(note, 110, subsequent_indent="  ") for note in notes]
        return "\n".join([*told, shown.to_string(float_format=lambda number: f"{number:.3g}")])

    __repr__ = __str__

    def _verdict(self, row: Any) -> str:
        found = []
        if row.asymmetry * self.num_tests <= LEVEL:
            found.append("too high" if row.mean_error > 0 else "too low")
        if row.width * self.num_tests <= LEVEL:
            found.append("too narrow" if row.sd_ratio < 1 else "too wide")
        if not found and row.uniformity * self.num_tests <= LEVEL:
            found.append("of another shape")
        return f"draws {', '.join(found)}" if found else ""

    def _counts(self, bars: int) -> Array:
        """`(bars, parameters)`."""
        place = np.minimum((self.ranks.to_numpy() * bars).astype(int), bars - 1)
        counts: Array = (place[None] == np.arange(bars)[:, None, None]).sum(1)
        return counts

    def _draw(self, panel: Any, name: str) -> None:
        from scipy.stats import binom

        number = len(self.ranks)
        bars = num_bars(number)
        low, high = binom.ppf([(1 - BAND) / 2, (1 + BAND) / 2], number, 1 / bars)
        counts = self._counts(bars)[:, list(self.ranks.columns).index(name)]
        outside = (counts < low) | (counts > high)
        panel.axhspan(low, high, color="0.85", zorder=0)
        panel.axhline(number / bars, color="0.5", linewidth=0.8, zorder=1)
        colors = np.where(outside, "tab:red", "tab:blue")
        panel.bar((np.arange(bars) + 0.5) / bars, counts, 0.9 / bars, color=colors, zorder=2, alpha=0.85)
        row = self.table.loc[name]
        panel.set_title(f"{name}\np = {row['p_value']:.2g}  {row['verdict']}", fontsize="small")
        panel.set_xlim(0, 1)
        panel.set_xticks([0, 0.5, 1], ["0", "½", "1"])


def num_bars(num_simulations: int) -> int:
    """Bars of the histogram: of about 20 ranks each, 4 to 20 of them."""
    return int(np.clip(num_simulations // RANKS_A_BAR, *BARS))
