"""Quantiles of the policy ratio over an update's tokens, from counts that add up over micro-batches and devices.

The tokens of an update are never in one place, so a quantile is read off their distribution at fixed edges of
`log(pi / pi_old)`, interpolated between two of them: neighbouring edges differ by a factor of 1.12, 0 has one on
either side at 1e-5, and what lies beyond 10 counts as there.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

_HALF = np.geomspace(1e-5, 10.0, 121)
EDGES = np.concatenate([-_HALF[::-1], _HALF])  # [242], of the log ratio
QUANTILES = {"q01": 0.01, "q05": 0.05, "q50": 0.5, "q95": 0.95, "q99": 0.99}


def counts_below(log_ratio: jax.Array, mask: jax.Array) -> jax.Array:
    """[242]: how many of the tokens whose mask is 1 lie at or below each edge. Arguments are [B, T] float."""
    edges = jnp.asarray(EDGES, log_ratio.dtype)[None, None, :]
    return jnp.sum(mask[:, :, None] * (log_ratio[:, :, None] <= edges), axis=(0, 1))


def ratio_quantiles(below: np.ndarray, total: float) -> dict[str, float]:
    """{"ratio_q50": ...} for each of `QUANTILES`, from all `total` tokens' `counts_below`; NaN for 0 tokens."""
    if not total > 0:
        return {f"ratio_{name}": float("nan") for name in QUANTILES}
    places = {name: np.interp(share * total, below, EDGES) for name, share in QUANTILES.items()}
    return {f"ratio_{name}": float(np.exp(place)) for name, place in places.items()}
