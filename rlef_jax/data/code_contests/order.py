"""Which problem an episode gets: a pure function of (size, seed, index).

The stream is a sequence of epochs, each a permutation of all positions. Iteration `step` takes `count` places, from
`step * count` on, and each process takes its share of them. So shares are disjoint, epochs are shuffled globally, a run
resumes from its step number alone, and the stream doesn't depend on the number of processes.
"""

from __future__ import annotations

import functools

import numpy as np

_STREAM = 0xC0DEC047  # keeps these draws apart from any other use of the seed


@functools.lru_cache(maxsize=8)
def epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
    """The epoch's permutation of range(size): int64 of shape [size].

    Sorts random keys: for CodeContests' 13,000 problems this takes two milliseconds per epoch, so grain's
    `index_shuffle`, which needs no memory, gains nothing. NumPy guarantees the words of `SeedSequence` across
    versions, unlike `Generator.permutation`, so a run can resume under another NumPy.
    """
    keys = np.random.SeedSequence([_STREAM, seed, epoch]).generate_state(size, np.uint64)
    return np.argsort(keys, kind="stable")


def position_at(size: int, seed: int, index: int) -> int:
    """The position in the split of the stream's `index`-th problem. Raises ValueError for an empty split."""
    if size < 1:
        raise ValueError("no problems to choose from")
    epoch, place = divmod(index, size)
    return int(epoch_order(size, seed, epoch)[place])
