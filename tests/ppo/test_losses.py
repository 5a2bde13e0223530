"""Losses against loops written from appendix A.1, and their gradients against finite differences in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlef_jax.ppo.losses import likelihood_loss, policy_loss, value_loss
from rlef_jax.ppo.settings import LossSettings

SETTINGS = [
    LossSettings(),
    LossSettings(importance="decoupled", importance_cap=1.1),
    LossSettings(importance="decoupled", importance_cap=1.1, importance_mode="mask"),
    LossSettings(importance="none", clip_eps=0.1),
]
NAMES = ["paper", "cap", "mask", "none"]


def policy_inputs(seed=0, shape=(5, 7)):
    """logp, old_logp, behavior_logp, advantages, mask; ratios on both sides of every threshold."""
    rng = np.random.default_rng(seed)
    old = rng.normal(-1.5, 0.5, shape)
    logp, behavior = old + rng.normal(0, 0.3, shape), old + rng.normal(0, 0.3, shape)
    return logp, old, behavior, rng.normal(0, 1, shape), (rng.random(shape) < 0.7).astype(float)


def clip(x, low, high):
    return min(max(x, low), high)


def loop_policy_loss(logp, old, behavior, advantages, mask, s):
    total, clipped, truncated = 0.0, 0, 0
    for b, t in np.ndindex(logp.shape):
        if not mask[b, t]:
            continue
        pi, pi_old, pi_b, a = *(math.exp(x[b, t]) for x in (logp, old, behavior)), advantages[b, t]
        ratio, weight = pi / pi_old, 1.0
        if s.importance == "paper":
            ratio *= min(pi / pi_b, 1.0)
            truncated += math.log(pi / pi_b) > 1e-3
        elif s.importance == "decoupled":
            weight = pi_old / pi_b
            if weight > s.importance_cap:
                truncated += 1
                weight = s.importance_cap if s.importance_mode == "cap" else 0.0
        near = clip(ratio, 1 - s.clip_eps, 1 + s.clip_eps)
        clipped += near != ratio
        total -= weight * min(ratio * a, near * a)
    return total, clipped, truncated


@pytest.mark.parametrize("settings", SETTINGS, ids=NAMES)
@pytest.mark.parametrize("compiled", [False, True])
def test_policy_loss_matches_the_loop(settings, compiled):
    inputs = policy_inputs()
    expected, clipped, truncated = loop_policy_loss(*inputs, settings)
    with jax.enable_x64(True):
        function = jax.jit(policy_loss, static_argnums=5) if compiled else policy_loss
        loss, statistics = jax.device_get(function(*(jnp.asarray(x) for x in inputs), settings))
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    assert statistics["clipped"] == clipped and 0 < clipped < inputs[-1].sum()
    assert statistics["truncated"] == truncated and (truncated > 0 or settings.importance == "none")


def test_rounding_between_sampler_and_trainer_is_not_truncation():
    """Half of on-policy tokens lie above pi_b by a rounding error; only a real difference is counted."""
    log_ratio = jnp.asarray([[1e-6, -1e-6, 9e-4, 2e-3, -2e-3, 0.5]])
    old = jnp.full(log_ratio.shape, -1.0)
    ones = jnp.ones_like(old)
    _, statistics = policy_loss(old, old, old - log_ratio, ones, ones, LossSettings())
    assert statistics["truncated"] == 2


def test_policy_loss_by_hand():
    """ratio 1.5 and pi / pi_b 0.5: r = 0.75 under the paper's weighting, below the range when A < 0."""
    arrays = [jnp.full((1, 1), math.log(x)) for x in (0.3, 0.2, 0.6)]
    loss, _ = policy_loss(*arrays, jnp.full((1, 1), -2.0), jnp.ones((1, 1)), LossSettings())
    np.testing.assert_allclose(loss, 1.6, rtol=1e-6)  # -min(0.75 * -2, 0.8 * -2)
    loss, _ = policy_loss(*arrays, jnp.full((1, 1), 2.0), jnp.ones((1, 1)), LossSettings())
    np.testing.assert_allclose(loss, -1.5, rtol=1e-6)
    loss, _ = policy_loss(*arrays, jnp.full((1, 1), 2.0), jnp.ones((1, 1)), LossSettings(importance="none"))
    np.testing.assert_allclose(loss, -2.4, rtol=1e-6)  # -min(1.5 * 2, 1.2 * 2)
    loss, _ = policy_loss(*arrays, jnp.full((1, 1), 2.0), jnp.ones((1, 1)), LossSettings(importance="decoupled"))
    np.testing.assert_allclose(loss, -0.8, rtol=1e-6)  # the same, times 0.2 / 0.6


def central_differences(function, x, step=1e-6):
    gradient = np.zeros_like(x)
    for at in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[at] += step
        down[at] -= step
        gradient[at] = (float(function(up)) - float(function(down))) / (2 * step)
    return gradient


def away_from_policy_kinks(logp, old, behavior, settings, margin=1e-3):
    """Move log-probabilities off the points where the loss has no derivative."""
    ratio = np.exp(logp - old)
    if settings.importance == "paper":
        ratio = ratio * np.minimum(np.exp(logp - behavior), 1)
    near = np.minimum(abs(ratio - 1 - settings.clip_eps), abs(ratio - 1 + settings.clip_eps)) < margin
    return logp + np.where(near, 5 * margin, 0.0)


@pytest.mark.parametrize("settings", SETTINGS, ids=NAMES)
def test_policy_gradient_is_the_difference_quotient(settings):
    logp, old, behavior, advantages, mask = policy_inputs(seed=4, shape=(4, 5))
    logp = away_from_policy_kinks(logp, old, behavior, settings)
    with jax.enable_x64(True):
        rest = tuple(jnp.asarray(x) for x in (old, behavior, advantages, mask))
        # What stands inside stop_grad is frozen at the unperturbed parameters, so it doesn't enter the quotient.
        frozen = jnp.asarray(logp)
        loss = jax.jit(lambda x: policy_loss(x, *rest, settings, frozen_logp=frozen)[0])
        expected = central_differences(lambda x: loss(jnp.asarray(x)), logp)
        gradient = np.asarray(jax.grad(lambda x: policy_loss(x, *rest, settings)[0])(jnp.asarray(logp)))
    np.testing.assert_allclose(gradient, expected, atol=1e-8)
    assert np.abs(expected).max() > 0.1
    assert not gradient[mask == 0].any()


def test_rows_outside_the_mask_cannot_overflow():
    big = jnp.full((1, 2), 1e5)
    arguments = (jnp.zeros((1, 2)), -big, -big, jnp.ones((1, 2)), jnp.zeros((1, 2)))
    for settings in SETTINGS:
        loss, gradient = jax.value_and_grad(lambda x, s=settings: policy_loss(x, *arguments[1:], s)[0])(arguments[0])
        assert loss == 0 and not np.asarray(gradient).any()


def value_inputs(seed=0, shape=(6, 3)):
    rng = np.random.default_rng(seed)
    old = rng.normal(0, 0.5, shape)
    values, returns = old + rng.normal(0, 0.3, shape), rng.normal(0, 0.7, shape)
    return values, old, returns, (rng.random(shape) < 0.7).astype(float)


def test_value_loss_matches_the_loop():
    values, old, returns, mask = value_inputs()
    expected, clipped = 0.0, 0
    for at in np.ndindex(values.shape):
        if mask[at]:
            near = clip(values[at], old[at] - 0.2, old[at] + 0.2)
            clipped += near != values[at]
            expected += 0.5 * max((values[at] - returns[at]) ** 2, (near - returns[at]) ** 2)
    with jax.enable_x64(True):
        arrays = [jnp.asarray(x) for x in (values, old, returns, mask)]
        loss, statistics = jax.device_get(value_loss(*arrays, LossSettings()))
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    assert statistics["value_clipped"] == clipped > 0


def test_value_gradient_is_the_difference_quotient():
    values, old, returns, mask = value_inputs(seed=1)
    values = values + np.where(abs(abs(values - old) - 0.2) < 1e-3, 5e-3, 0.0)
    with jax.enable_x64(True):
        rest = tuple(jnp.asarray(x) for x in (old, returns, mask))
        loss = jax.jit(lambda x: value_loss(x, *rest, LossSettings())[0])
        expected = central_differences(lambda x: loss(jnp.asarray(x)), values)
        gradient = np.asarray(jax.grad(loss)(jnp.asarray(values)))
    np.testing.assert_allclose(gradient, expected, atol=1e-8)
    assert not gradient[mask == 0].any()


def test_unknown_choices_are_refused_by_name():
    with pytest.raises(ValueError, match="ppo.importance is 'off'"):
        LossSettings(importance="off")
    with pytest.raises(ValueError, match="ppo.importance_mode is 'drop'"):
        LossSettings(importance_mode="drop")


def test_likelihood_is_a_sum_over_learned_tokens_and_its_gradient_the_difference_quotient():
    logp, *_, mask = policy_inputs(seed=6, shape=(4, 5))
    loop = -sum(logp[at] for at in np.ndindex(logp.shape) if mask[at])
    with jax.enable_x64(True):
        function = jax.jit(lambda x: likelihood_loss(x, jnp.asarray(mask))[0])
        np.testing.assert_allclose(function(jnp.asarray(logp)), loop, rtol=1e-12)
        expected = central_differences(lambda x: function(jnp.asarray(x)), logp)
        np.testing.assert_allclose(jax.grad(function)(jnp.asarray(logp)), expected, atol=1e-8)
