"""The picture of posteriors beside a reference: what is drawn where, by the data of its artists."""

from __future__ import annotations

import inspect
import io
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from pyro_scale.diagnostics import calibration_plot, comparison_plot, palette, plot_compare
from test_compare import made, noise

from pyro_scale.errors import ArgumentError


def written(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=50)
    return file.getvalue()


def panels(figure: Any) -> tuple[dict[str, Any], Any]:
    """Marginals that are visible, by name, and the forest."""
    *marginals, forest = figure.axes
    return {axis.get_title(): axis for axis in marginals if axis.get_visible()}, forest


def intervals(forest: Any) -> dict[tuple[str, int], list[tuple[float, float]]]:
    """(colour, parameter) -> ends of the intervals."""
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for line in forest.lines:
        if len(line.get_xdata()) == 2 and line.get_xdata()[0] != line.get_xdata()[1]:
            place = round(float(line.get_ydata()[0]))
            found.setdefault((to_hex(line.get_color()), place), []).append(tuple(line.get_xdata()))
    return found


def test_where_means_and_intervals_are_drawn() -> None:
    mu, nu = noise(4, 500), 5 + 2 * noise(4, 500, seed=1)
    figure = plot_compare(made("SGHMC", mu=mu + 0.5, nu=1.5 * nu), reference=made("NUTS", mu=mu, nu=nu))
    marginals, forest = panels(figure)
    assert list(marginals) == ["mu", "nu"]
    assert [tick.get_text() for tick in forest.get_yticklabels()] == ["mu", "nu"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["NUTS", "SGHMC"]
    scaled = (1.5 * nu.flatten().numpy() - nu.flatten().numpy().mean()) / nu.flatten().numpy().std()
    ends = intervals(forest)[("#0072b2", 1)]
    assert np.allclose(ends, [np.quantile(scaled, (0.05, 0.95)), np.quantile(scaled, (0.25, 0.75))])
    centers = [line.get_xdata()[0] for line in forest.lines if line.get_marker() == "s" or line.get_marker() == "o"]
    assert np.isclose(centers, scaled.mean()).any()
    assert len({color for color, _ in intervals(forest)}) == 2
    assert len(written(figure)) > 5000


def test_marginals_share_their_bins_and_have_an_area_of_one() -> None:
    """Of as much as is shown of it: 0.2 % of either tail may be cut."""
    figure = plot_compare(made("fast", mu=2 * noise(4, 500, seed=1)), reference=made("exact", mu=noise(4, 500)))
    axis = panels(figure)[0]["mu"]
    polygons = [patch.get_xy() for patch in axis.patches]
    assert len(polygons) == 2
    for corners in polygons:
        x, y = corners.T
        area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
        assert area == pytest.approx(1.0, abs=1e-9)
    assert polygons[0][:, 0].min() == polygons[1][:, 0].min()


def test_those_farthest_from_the_reference_are_drawn() -> None:
    scale = 10.0 ** torch.arange(15)  # distances count in sds of each
    moved = torch.zeros(15, dtype=torch.float64)
    moved[[0, 3, 14]] = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    draws = noise(2, 300, 15)
    reference = made("exact", w=draws * scale)
    fast = made("fast", w=(draws + moved) * scale)
    names = list(panels(plot_compare(fast, reference=reference, num_parameters=3))[0])
    assert names == ["w[0]", "w[3]", "w[14]"]
    assert list(panels(plot_compare(fast, reference=reference, num_parameters=1))[0]) == ["w[3]"]
    assert len(panels(plot_compare(fast, reference=reference))[0]) == 12
    chosen = panels(plot_compare(fast, reference=reference, parameters=["w[5]", "w[2]"]))[0]
    assert list(chosen) == ["w[5]", "w[2]"]
    assert list(panels(plot_compare(fast, reference=reference, parameters="w[5]"))[0]) == ["w[5]"]


def test_modes_ensembles_and_what_does_not_vary() -> None:
    reference = made("NUTS", mu=noise(4, 100), one=torch.ones(4, 100))
    broken = noise(1, 100, seed=3)
    broken[0, :90] = torch.nan
    figure = plot_compare(
        made("MAP", mu=torch.zeros(1, 1), one=torch.ones(1, 1)),
        made("ensemble", mu=noise(5, 1, seed=2), one=torch.ones(5, 1)),
        made("broken", mu=broken, one=torch.full((1, 100), torch.nan)),
        reference=reference,
    )
    marginals, _ = panels(figure)
    drawn = {line.get_label(): len(line.get_xdata()) for line in marginals["mu"].lines}
    assert drawn == {"MAP": 1, "ensemble": 5, "broken": 10}
    assert len(written(figure)) > 5000
    few = plot_compare(made("MAP", mu=torch.zeros(1, 1)), reference=made("ensemble", mu=noise(5, 1)))
    assert len(written(few)) > 3000


def test_methods_are_told_apart_without_colours_too() -> None:
    """By line style and marker together; in grey, neighbours differ in lightness."""
    from pyro_scale.diagnostics.palette import COLORS, GREY, LINES, MARKERS

    assert len({(LINES[k % len(LINES)], MARKERS[k]) for k in range(len(COLORS))}) == len(COLORS)
    assert len({*COLORS, GREY}) == len(COLORS) + 1
    everyone = [made(f"method {k}", mu=noise(2, 50, seed=k)) for k in range(len(COLORS))]
    figure = plot_compare(*everyone, reference=made("exact", mu=noise(2, 50, seed=9)))
    assert len(intervals(panels(figure)[1])) == len(COLORS) + 1


def test_pyplot_is_left_alone() -> None:
    from matplotlib import pyplot as plt

    before = plt.get_fignums(), dict(plt.rcParams)
    written(plot_compare(made("a", mu=noise(2, 50)), made("b", mu=noise(2, 50))))
    assert (plt.get_fignums(), dict(plt.rcParams)) == before
    assert "pyplot" not in "".join(inspect.getsource(module) for module in (comparison_plot, calibration_plot, palette))


BAD: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "one": ([made(mu=noise(2, 50))], {}, "plot_compare got 1 posterior; it needs one to judge"),
    "draws": ([made(mu=noise(2, 50)), noise(2, 50)], {}, "plot_compare got a Tensor; it takes posteriors"),
    "too many": ([made(mu=noise(2, 50))] * 9, {}, "8 posteriors beside the reference; more than 7"),
    "unknown": ([made(mu=noise(2, 50))] * 2, {"parameters": ["nu"]}, "share no parameter 'nu'; they share 'mu'"),
    "none": ([made(mu=noise(2, 50))] * 2, {"parameters": []}, "parameters are 0 names; 1 to 12"),
    "13": ([made(w=noise(2, 50, 13))] * 2, {"parameters": [f"w[{i}]" for i in range(13)]}, "are 13 names; 1 to 12"),
    "number": ([made(mu=noise(2, 50))] * 2, {"num_parameters": 13}, "num_parameters is 13"),
    "nothing shared": ([made(mu=noise(2, 50)), made(nu=noise(2, 50))], {}, "no parameter in common"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_drawn(name: str) -> None:
    posteriors, named, message = BAD[name]
    with pytest.raises(ArgumentError, match=message):
        plot_compare(*posteriors, **named)
