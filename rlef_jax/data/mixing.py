"""Which of several sources a place of the training stream is filled from: a pure function of (weights, seed, place).

The stream is cut into blocks of `BLOCK` places. Of each block every source has its share, rounded to whole places, in
an order that is drawn for the block. A source's own problems come in the order of its own stream, none left out, so its
epochs stay whole.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

BLOCK = 1000
_STREAM = 0x317ED  # keeps these draws apart from any other use of the seed


def counts(weights: Sequence[float]) -> list[int]:
    """How many places of a block each source has: shares of the weights' sum, the largest remainders rounded up.

    Raises ValueError for weights that aren't above 0, or so small that a source would have no place.
    """
    total = sum(weights)
    if not weights or min(weights) <= 0:
        raise ValueError(f"weights must be above 0; they are {tuple(weights)}")
    shares = [BLOCK * weight / total for weight in weights]
    whole = [int(share) for share in shares]
    by_remainder = sorted(range(len(weights)), key=lambda i: (whole[i] - shares[i], i))
    for i in by_remainder[: BLOCK - sum(whole)]:
        whole[i] += 1
    if 0 in whole:
        least = weights[whole.index(0)]
        raise ValueError(f"a weight must be at least a thousandth of all; {least:g} of {total:g} is less")
    return whole


def member_at(weights: Sequence[float], seed: int, place: int) -> tuple[int, int]:
    """(number of the source, place in its own stream) of a place in the stream of all of them."""
    block, inside = divmod(place, BLOCK)
    members, ranks, sizes = _block(tuple(weights), seed, block)
    member = int(members[inside])
    return member, block * sizes[member] + int(ranks[inside])


@functools.lru_cache(maxsize=8)
def _block(weights: tuple[float, ...], seed: int, block: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Each place's source, and how many of the block's before it have the same, int64 of shape [BLOCK]; `counts`.

    NumPy guarantees the words of `SeedSequence` across versions, unlike `Generator.permutation`.
    """
    keys = np.random.SeedSequence([_STREAM, seed, block]).generate_state(BLOCK, np.uint64)
    sizes = counts(weights)
    members = np.repeat(np.arange(len(weights)), sizes)[np.argsort(keys, kind="stable")]
    ranks = np.zeros(BLOCK, np.int64)
    for member in range(len(weights)):
        own = members == member
        ranks[own] = np.arange(int(own.sum()))
    return members, ranks, sizes
