"""Quantiles of the policy ratio: against NumPy's, over any split, and at the ends."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlef_jax.ppo.ratio_quantiles import EDGES, QUANTILES, counts_below, ratio_quantiles


def quantiles(log_ratio, mask):
    return ratio_quantiles(np.asarray(jax.jit(counts_below)(jnp.asarray(log_ratio), jnp.asarray(mask))), mask.sum())


@pytest.mark.parametrize("scale", [1e-4, 0.02, 0.5, 3.0])
def test_they_are_numpys_within_a_tenth_of_the_logarithm(scale):
    rng = np.random.default_rng(3)
    log_ratio = (scale * rng.standard_normal((16, 300))).astype(np.float32)
    mask = (rng.random((16, 300)) < 0.7).astype(np.float32)
    log_ratio[mask == 0] = 99.0  # what doesn't count says nothing
    for name, found in quantiles(log_ratio, mask).items():
        exact = np.quantile(log_ratio[mask > 0], QUANTILES[name.removeprefix("ratio_")])
        assert np.log(found) == pytest.approx(exact, rel=0.1, abs=0.05 * scale)


def test_counts_of_parts_add_up():
    rng = np.random.default_rng(4)
    log_ratio, mask = jnp.asarray(rng.standard_normal((6, 40))), jnp.ones((6, 40))
    parts = sum(counts_below(log_ratio[i : i + 2], mask[i : i + 2]) for i in (0, 2, 4))
    np.testing.assert_array_equal(parts, counts_below(log_ratio, mask))


def test_a_policy_that_has_not_moved_is_at_one_and_what_lies_far_at_the_end():
    rounding = 1e-6 * np.random.default_rng(5).standard_normal((4, 50)).astype(np.float32)
    ones = np.ones((4, 50), np.float32)
    assert quantiles(rounding, ones) == {f"ratio_{q}": pytest.approx(1.0, abs=2e-5) for q in QUANTILES}
    assert set(quantiles(rounding + 50, ones).values()) == {float(np.exp(EDGES[-1]))}
    assert set(quantiles(rounding - 50, ones).values()) == {float(np.exp(EDGES[0]))}


def test_without_tokens_there_are_none():
    found = ratio_quantiles(np.zeros(len(EDGES)), 0.0)
    assert len(found) == len(QUANTILES) and all(math.isnan(value) for value in found.values())
