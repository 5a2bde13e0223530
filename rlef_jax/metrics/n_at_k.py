"""n@k: the probability that one of n programs, selected from k samples by the public tests, is correct.

Li et al. (2022), as used in RLEF (section 3.2, B.1). Of a problem's N samples, P pass the public tests and C of those
pass all tests. Draw k of the N without replacement; X of them pass the public tests; submit min(n, X) of these at
random. Programs that fail a public test can't be correct, so they are never submitted. A random subset of a random
subset is itself uniform. So given X = x, the m = min(n, x) submissions are a uniform draw from the P:

    n@k = sum_x  Hypergeometric(x; N, P, k)  *  (1 - binom(P - C, m) / binom(P, m))

This is the exact expectation of the resampling that the paper describes. A sample here is a whole rollout, which
submits its last program: k responses with t turns each are k // t rollouts, so 1@3 with three turns is one rollout.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

# Of a problem: (number of samples, number that pass the public tests, number that pass all tests).
Counts = tuple[int, int, int]


@functools.lru_cache(maxsize=1 << 16)
def n_at_k(samples: int, public: int, correct: int, n: int, k: int) -> float:
    """The estimate for one problem.

    Args:
      samples: N, the number of samples.
      public: P, the number of samples that pass every public test.
      correct: C, the number of samples that pass every test.
      n: the number of programs submitted.
      k: the number of samples drawn.

    Raises:
      ValueError: C <= P <= N doesn't hold, k isn't in 1..N, or n < 1.
    """
    if not 0 <= correct <= public <= samples:
        raise ValueError(f"counts must nest: {correct} correct, {public} pass public tests, {samples} samples")
    if not 1 <= k <= samples or n < 1:
        raise ValueError(f"{n}@{k} can't be estimated from {samples} samples")
    total = 0.0
    for x in range(max(1, k - (samples - public)), min(k, public) + 1):
        drawn = math.comb(public, x) * math.comb(samples - public, k - x) / math.comb(samples, k)
        m = min(n, x)
        total += drawn * (1.0 - math.comb(public - correct, m) / math.comb(public, m))
    return total


def mean_n_at_k(counts: Sequence[Counts], n: int, k: int) -> float:
    """The mean over problems; `counts` holds (samples, public, correct) of each. Raises ValueError without problems."""
    if not counts:
        raise ValueError("no problems")
    return float(np.mean([n_at_k(samples, public, correct, n, k) for samples, public, correct in counts]))


def resampled_interval(
    counts: Sequence[Counts], n: int, k: int, *, resamplings: int = 200, seed: int = 0
) -> tuple[float, float]:
    """The paper's 95 % interval of `mean_n_at_k`: resamples each problem's N results with replacement (B.1).

    It covers the variation between samples of the same problems, not between sets of problems.
    """
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(resamplings):
        drawn = []
        for samples, public, correct in counts:
            shares = np.array([correct, public - correct, samples - public]) / samples
            right, wrong, _ = map(int, rng.multinomial(samples, shares))
            drawn.append((samples, right + wrong, right))
        means.append(mean_n_at_k(drawn, n, k))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def rollouts_for(k: int, turns: int) -> int:
    """The number of rollouts of `turns` responses that k responses make: 33 for 100 at 3 turns.

    Raises ValueError if k < turns.
    """
    if k < turns:
        raise ValueError(f"{k} responses don't make one rollout of {turns} turns")
    return k // turns
