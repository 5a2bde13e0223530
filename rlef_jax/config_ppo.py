"""The section `ppo` of the configuration, with its defaults; `ppo/settings.py` says more of each key."""

from __future__ import annotations

from typing import Any


def ppo_section() -> dict[str, Any]:
    """The keys of `config.ppo`."""
    return dict(
        rollouts=1024,  # episodes per iteration (A.1)
        updates=4,  # disjoint updates per iteration, one pass
        microbatch_rows=32,  # rows per forward and backward pass; changes speed and memory, never the result
        buckets=(128, 192, 256),  # row lengths; each row takes the shortest that holds its episodes
        row_episodes=1,  # episodes that may share a row, where that wastes less
        learning_rate=2e-7,
        warmup_steps=50,
        decay="none",  # of the learning rate after the warm-up: "linear" to 0 at the run's end (train.iterations)
        weight_decay=0.1,
        clip_norm=0.0,  # global gradient norm; 0 = no clipping
        max_grad_norm=0.0,  # above it an update is bad, see train.bad_update; 0 = no limit
        adam_b1=0.9,
        adam_b2=0.999,
        kl_beta=0.05,  # weight of the KL penalty in the reward (2.2)
        kl="mean",  # over a response's tokens: their probabilities' geometric mean (2.2); "product": the sum
        gamma=1.0,  # discount for each value's step: a turn, or a token by value_level="token" (A.1)
        gae_lambda=1.0,  # of generalized advantage estimation, over the same steps; 1 = returns without bootstrapping
        value_level="turn",  # one value a turn (2.2); "token": one at each response token (B.6)
        baseline="critic",  # what is subtracted from returns; without a critic "rloo", "grpo" or "dr_grpo"
        group_size=1,  # rollouts of each problem in an iteration
        clip_eps=0.2,  # policy ratio
        value_clip=0.2,
        value_coef=1.0,  # matters with a shared trunk only
        importance="paper",  # "paper" (A.1), "decoupled" (pi_old / pi_b outside the clip) or "none"
        importance_cap=5.0,  # decoupled: the weight's bound c
        importance_mode="cap",  # decoupled, above c: "cap" the weight or "mask" the token
        separate_critic=True,  # value network of its own, from the same weights (A.1); False = shared trunk
        detach_critic=False,  # with a shared trunk: the value loss trains the value head alone
        normalize_advantages=True,  # once an iteration; must be False without a critic
    )
