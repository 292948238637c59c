"""Whether uncertainty tells rows of another kind from those that the model was made for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from pyro_scale.arrays import as_numbers
from pyro_scale.errors import ArgumentError
from pyro_scale.prediction import Prediction

KINDS = ("total", "aleatoric", "epistemic")


def auroc(outside: Any, inside: Any) -> float:
    """Area under the receiver operating characteristic: how often a value outside is larger than one inside.

    Equal values count half. 1 tells all apart, 0.5 none. Hanley & McNeil (1982), Radiology.

    Args:
        outside, inside: numbers, `(n,)` and `(m,)`.

    Example:
        >>> auroc([3.0, 2.0], [1.0, 2.0])
        0.875
    """
    from scipy.stats import rankdata

    values = [as_numbers("values", each).double().cpu().numpy() for each in (outside, inside)]
    if any(each.ndim != 1 or len(each) == 0 or np.isnan(each).any() for each in values):
        shapes = " and ".join(str(each.shape) for each in values)
        raise ArgumentError(f"Values outside and inside have shapes {shapes}; they must be (n,), at least 1, not NaN.")
    n, m = map(len, values)
    ranks = rankdata(np.concatenate(values))[:n]
    return float((ranks.sum() - n * (n + 1) / 2) / (n * m))


def ood_auroc(inside: Prediction, outside: Prediction) -> pd.DataFrame:
    """How well each kind of uncertainty tells rows out of distribution from those in it.

    Epistemic uncertainty is what should: it is of what was not in the data. Total and aleatoric uncertainty are large
    wherever classes overlap too.

    Args:
        inside: the prediction for rows like those of the fit.
        outside: that for others.

    Returns:
        One row for each observed site and kind ("total", "aleatoric", "epistemic"), with its `auroc`: 1 if every row
        outside is more uncertain, 0.5 if they look alike. Kinds that a prediction does not have are left out. Of a site
        with several values a row their sum is taken.

    Raises:
        ArgumentError: no kind of uncertainty that both predictions have.
    """
    for prediction in (inside, outside):
        if not isinstance(prediction, Prediction):
            raise ArgumentError(
                f"ood_auroc got a {type(prediction).__name__}; it takes two predictions, as posterior.predict returns."
            )
    found = {}
    for site in inside.draws:
        for kind in KINDS:
            pair = [getattr(prediction, kind).get(site) for prediction in (outside, inside)]
            if all(each is not None for each in pair):
                found[site, kind] = auroc(*(each.reshape(len(each), -1).sum(1) for each in pair))
    if not found:
        raise ArgumentError(
            f"The predictions are of sites {list(inside.draws)} and {list(outside.draws)}; they have no kind of "
            "uncertainty in common. It is known for sites with a closed mean and variance, or of classes."
        )
    index = pd.MultiIndex.from_tuples(found, names=["site", "uncertainty"])
    return pd.DataFrame({"auroc": list(found.values())}, index=index)
