"""Which problem an episode gets: a pure function of (size, seed, index).

The stream is one shuffled epoch after another, each a permutation of all positions. A run's iteration `step` takes the
`count` places from `step * count` on, and a process takes its share of those: so shares are disjoint, epochs are
shuffled globally, the step's number alone says where a run goes on, and the stream is the same however many read it.
"""

from __future__ import annotations

import functools

import numpy as np

_STREAM = 0xC0DEC047  # keeps these draws apart from any other use of the seed


@functools.lru_cache(maxsize=8)
def epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
    """The epoch's permutation of range(size): int64 of shape [size].

    Sorts random keys. A permutation computed place by place (grain's `index_shuffle`) would need no memory, but here
    are 13,000 places, whose whole order takes two milliseconds an epoch; and NumPy promises that SeedSequence's
    words never change, which it does not of `Generator.permutation`: a run resumed under another NumPy goes on.
    """
    keys = np.random.SeedSequence([_STREAM, seed, epoch]).generate_state(size, np.uint64)
    return np.argsort(keys, kind="stable")


def position_at(size: int, seed: int, index: int) -> int:
    """The position in the split of the stream's `index`-th problem. Raises ValueError for an empty split."""
    if size < 1:
        raise ValueError("no problems to choose from")
    epoch, place = divmod(index, size)
    return int(epoch_order(size, seed, epoch)[place])
