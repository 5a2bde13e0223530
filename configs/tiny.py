"""The embedded default: a 0.5 M-parameter model learns MiniContests by RLEF on two CPU cores.

Source: the method of Gehring et al. (ICML 2025) scaled down: shared trunk, 256 rollouts an iteration, short warm-up.
Command: python -m rlef_jax.train --config=configs/tiny.py --workdir=runs/demo        (or: make demo)
Expected: within 15 minutes, 1@3 on test_500 at least 20 points above the warm start's; `summary.json` has the numbers.

Variants (configs/tiny.py:NAME):
  single_turn      one response an episode, twice the episodes (RLEF's have 2.0 responses each): no feedback.
  random_feedback  trains under random feedback (ours; in C.2 it is shown at test time only).
  paper_iteration  one iteration of the paper's shape: 1024 rollouts, 4 updates of 256.
  token_values     a value at each response token (B.6).
  product_kl       the KL penalty of a response's probability, not of its geometric mean (2.2).
  group            no critic: each problem's 8 rollouts are compared with each other (RLOO).
  repair           one repair an episode, of a failed response of `single_turn` (ours: a repairer that learns by PPO;
                   the paper's is `tiny_sft.py:repairs`). Trained and evaluated with the policy that it repairs:

    python -m rlef_jax.train --config=configs/tiny.py:single_turn --workdir=runs/single_turn
    python -m rlef_jax.train --config=configs/tiny.py:repair --workdir=runs/repair
    python -m rlef_jax.evaluate --workdir=runs/single_turn --repairer=runs/repair
"""

from ml_collections import ConfigDict

from rlef_jax.config import base_config, unknown_variant

VARIANTS = ("", "single_turn", "random_feedback", "paper_iteration", "token_values", "product_kl", "group", "repair")


def get_config(variant: str = "") -> ConfigDict:
    config = base_config()
    config.episode.max_failures_shown = 1  # so that three turns fit 256 tokens
    config.episode.max_text_chars = 120
    config.episode.max_new_tokens = 80
    config.sampling.rows = 128  # two workers of 64
    config.execution.workers = 2  # on two cores they and JAX take turns: each waits for the other much of the time
    config.ppo.rollouts = 256
    config.ppo.updates = 4
    config.ppo.microbatch_rows = 16
    config.ppo.learning_rate = 5e-4  # found on valid, as is what follows: docs/lab/recipe.md
    config.ppo.decay = "linear"
    config.ppo.warmup_steps = 4
    config.ppo.separate_critic = False
    config.train.iterations = 25
    config.train.checkpoint_every = 5

    if variant == "single_turn":
        config.episode.max_turns = 1
        config.ppo.rollouts *= 2
        config.eval.split = ""  # rlef_jax.evaluate compares it with RLEF, over turns and as independent samples
    elif variant == "repair":
        config.data.failures = "runs/single_turn"
        config.episode.max_turns = 1
        config.ppo.rollouts *= 2
        config.eval.split = ""
    elif variant == "random_feedback":
        config.episode.feedback = "random"
    elif variant == "paper_iteration":
        config.ppo.rollouts = 1024
        config.train.iterations = 1
    elif variant == "token_values":
        config.ppo.value_level = "token"
    elif variant == "product_kl":
        config.ppo.kl = "product"
    elif variant == "group":
        config.ppo.baseline = "rloo"
        config.ppo.group_size = 8
        config.ppo.normalize_advantages = False
    elif variant:
        raise unknown_variant(variant, VARIANTS)
    return config
