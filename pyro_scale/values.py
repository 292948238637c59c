"""Names of single values of sites, and which of them are looked at where there are too many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

MOST_VALUES = 256
"""Of more values so many are looked at, evenly spaced, at least one of every site."""

Places = dict[str, NDArray[np.int64]]


def chosen(shapes: Mapping[str, Sequence[int]]) -> Places:
    """Site -> places of the values to look at, in the flattened site; evenly spaced where there are too many."""
    sizes = {site: int(np.prod(shape, dtype=np.int64)) for site, shape in shapes.items()}
    total = sum(sizes.values())
    places = {}
    for site, size in sizes.items():
        wanted = size if total <= MOST_VALUES else max(1, MOST_VALUES * size // total)
        places[site] = evenly_spaced(size, wanted)
    return places


def evenly_spaced(total: int, most: int) -> NDArray[np.int64]:
    """At most so many of the places 0 to total - 1, the first and the last among them.

    Example:
        >>> evenly_spaced(10, 4)
        array([0, 3, 6, 9])
    """
    return np.linspace(0, total - 1, min(total, most)).round().astype(np.int64)


def labels(site: str, shape: Sequence[int], places: NDArray[np.int64] | None = None) -> list[str]:
    """Names of values of a site, at places of the flattened site or at all: "w[2, 0]", or "w" for a number.

    Example:
        >>> labels("w", (2, 3), np.array([0, 5]))
        ['w[0, 0]', 'w[1, 2]']
    """
    if places is None:
        places = np.arange(int(np.prod(shape, dtype=np.int64)))
    if not shape:
        return [site] * len(places)
    indices = zip(*(axis.tolist() for axis in np.unravel_index(places, tuple(shape))), strict=True)
    return [f"{site}[{', '.join(map(str, index))}]" for index in indices]
