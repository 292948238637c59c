"""The order in which a `DataLoader` yields its rows: whether all have their turn, and count alike; and how much not."""

from __future__ import annotations

import logging
import math
from typing import Any, cast

from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

from pyro_scale.errors import ArgumentError

logger = logging.getLogger("pyro_scale")


def check_order(loader: DataLoader[Any]) -> None:
    """Refuses an order in which rows never come, and logs a line on one that biases or widens the posterior."""
    num_data, size = len(cast(Any, loader.dataset)), int(loader.batch_size or 0)
    left = num_data % size if num_data > size > 0 else 0
    if isinstance(loader.sampler, SequentialSampler) and loader.drop_last and left:
        raise ArgumentError(
            f"The DataLoader never yields the last {left} of its {num_data} rows: it drops them in every epoch, and "
            "does not shuffle. Pass shuffle=True to the DataLoader, or leave drop_last out."
        )
    if 0 < left < size / 4 and not loader.drop_last:
        logger.warning(
            "The last batch of the DataLoader has %d rows in place of %d and counts each of them %.0f times: such "
            "steps widen the posterior. Pass drop_last=True to a shuffling DataLoader; every row still has its turn.",
            left,
            size,
            num_data / left,
        )
    if isinstance(loader.sampler, SequentialSampler) and len(loader) > 1:
        logger.warning(
            "The DataLoader yields its rows in the same order in every epoch: draws then follow whatever changes along "
            "it, and a short last batch always holds the same rows. Pass shuffle=True to the DataLoader."
        )
    elif not isinstance(loader.sampler, (RandomSampler, SequentialSampler)):
        logger.warning(
            "The DataLoader's %s is taken to give every row the same chance, in an order of its own.",
            type(loader.sampler).__name__,
        )


def epoch_of(loader: DataLoader[Any]) -> tuple[float, float]:
    """How many batches N / n an epoch has, infinity if rows are drawn with replacement, and how uneven they are.

    A permutation cut into equal batches has noise that sums to 0. A last batch of another length, or rows that are
    dropped, leave a sum: with each row counted w times its variance is that of a row times the sum of w**2, less the
    square of the sum of w by N. It is given relative to the variance of a minibatch, for each step.
    """
    num_data, drawn, size = len(cast(Any, loader.dataset)), len(cast(Any, loader.sampler)), int(loader.batch_size or 0)
    if size >= num_data:
        return 1.0, 0.0
    whole, left = divmod(drawn, size)
    lengths = [size] * whole + [left] * (left > 0 and not loader.drop_last)
    squares, one = sum(1 / length for length in lengths) / len(lengths), 1 / size - 1 / num_data
    if getattr(loader.sampler, "replacement", False):
        return math.inf, squares / one - 1
    return num_data / size, max(0.0, (squares - len(lengths) / num_data) / one)
