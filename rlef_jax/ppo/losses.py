"""PPO losses as sums over tokens and values; the caller divides by counts taken over the whole update.

Both follow RLEF, appendix A.1, after Schulman et al. (2017), equation 7. With pi the policy being trained, pi_old the
policy at the iteration's start and pi_b the behaviour policy that sampled, per token:

    paper       r = pi / pi_old * stop_grad(min(pi / pi_b, 1)),      minimise -min(r A, clip(r, 1-eps, 1+eps) A)
    decoupled   u = pi / pi_old,  w = pi_old / pi_b,
                minimise -cut(w) min(u A, clip(u, 1-eps, 1+eps) A)   (cut: cap at c, or 0 above c, as AReaL does)
    none        u as above, w = 1

The paper's form squares the ratio where it is below 1, even if pi_b = pi_old.

`truncated` counts the tokens whose importance weight was cut: pi / pi_b above 1 ("paper"), pi_old / pi_b above c
("decoupled"). For "paper" it counts from a log ratio of 1e-3: on-policy, where both are the same but for rounding (some
1e-6), every other token lies above 1 by chance.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlef_jax.ppo.ratio_quantiles import counts_below
from rlef_jax.ppo.settings import LossSettings

TRUNCATED_FROM = 1e-3  # of log(pi / pi_b): see `truncated` above; the loss itself cuts from 0


def policy_loss(
    logp: jax.Array,
    old_logp: jax.Array,
    behavior_logp: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    settings: LossSettings,
    *,
    frozen_logp: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Clipped policy loss, summed over the tokens whose mask is 1.

    Args:
      logp: log pi(token), the only argument that is differentiated. All arrays are [B, T] float.
      old_logp: log pi_old(token), fixed at the iteration's start.
      behavior_logp: log pi_b(token), the sampler's.
      advantages: A, the same for every token of a turn unless each has a value of its own.
      mask: 1 for sampled tokens of rows that count. Others have no effect and exactly no gradient.
      settings: clip range and importance weighting.
      frozen_logp: what stands inside stop_grad; by default `logp`. Finite differences pass the unperturbed values.

    Returns:
      (sum of losses, sums over tokens of the statistics: clipped, approx_kl, ratio, truncated). Scalars, but for
      `ratio_below`, the `counts_below` of log(pi / pi_old).
    """
    inside = mask > 0
    current = jax.lax.stop_gradient(logp if frozen_logp is None else frozen_logp)
    # Outside the mask old and behaviour log-probabilities mean nothing: a ratio made of them could overflow.
    log_ratio = jnp.where(inside, logp - old_logp, 0.0)
    ratio = jnp.exp(log_ratio)
    outer = jnp.ones_like(ratio)
    truncated = jnp.zeros_like(inside)
    if settings.importance == "paper":
        off_policy = jnp.where(inside, current - behavior_logp, 0.0)
        truncated = off_policy > TRUNCATED_FROM
        ratio = ratio * jnp.exp(jnp.minimum(off_policy, 0.0))
    elif settings.importance == "decoupled":
        weight = jnp.exp(jnp.where(inside, old_logp - behavior_logp, 0.0))
        truncated = weight > settings.importance_cap
        above = settings.importance_cap if settings.importance_mode == "cap" else 0.0
        outer = jnp.where(truncated, above, weight)
    clipped = jnp.clip(ratio, 1.0 - settings.clip_eps, 1.0 + settings.clip_eps)
    losses = -outer * jnp.minimum(ratio * advantages, clipped * advantages)
    statistics = {
        "clipped": jnp.sum(mask * (clipped != ratio)),
        "approx_kl": jnp.sum(mask * (jnp.exp(log_ratio) - 1.0 - log_ratio)),
        "ratio": jnp.sum(mask * ratio),
        "truncated": jnp.sum(mask * truncated),
        "ratio_below": counts_below(log_ratio, mask),
    }
    return jnp.sum(mask * losses), jax.lax.stop_gradient(statistics)


def value_loss(
    values: jax.Array, old_values: jax.Array, returns: jax.Array, mask: jax.Array, settings: LossSettings
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Clipped value loss, summed over the values whose mask is 1: of turns, or of tokens.

        1/2 max((V - G)^2, (clip(V, V_old - alpha, V_old + alpha) - G)^2)

    Args:
      values: V, the only argument that is differentiated. All arrays are [B, N] float.
      old_values: V_old, fixed at the iteration's start.
      returns: G.
      mask: 1 for values of rows that count.
      settings: holds alpha (`value_clip`).

    Returns:
      (sum of losses, sums over values of the statistics: value_clipped, value_error (squared, unclipped)). Scalars.
    """
    near = jnp.clip(values, old_values - settings.value_clip, old_values + settings.value_clip)
    error, near_error = jnp.square(values - returns), jnp.square(near - returns)
    statistics = {"value_clipped": jnp.sum(mask * (near != values)), "value_error": jnp.sum(mask * error)}
    return jnp.sum(mask * 0.5 * jnp.maximum(error, near_error)), jax.lax.stop_gradient(statistics)


def likelihood_loss(logp: jax.Array, mask: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Negative log-likelihood summed over the tokens whose mask is 1, for supervised training.

    Args:
      logp: log pi(token), the only argument that is differentiated. [B, T] float, as the mask.
      mask: 1 for tokens that are learned. Others have no effect and exactly no gradient.

    Returns:
      (sum of losses, {}): no statistics, as `policy_loss` has.
    """
    return -jnp.sum(mask * logp), {}
