"""Supervised fine-tuning of the tiny model: its warm start, which ships inside the package, and two baselines of RLEF.

Source of the warm start: ours. Half of the dialogues open with a careful author's system line, every repair right; the
rest carry no mark and repair rightly 15 % of the time. Two stages, since reading is learned first and best with varied
wrong repairs:

  ""      from scratch, 160,000 dialogues: statements, programs, and reading feedback when marked.
  habits  goes on with 25,600 dialogues in which most unmarked programs take the commonest reading of a statement, even
          where it just failed. Without them the right repair is the likeliest one, and at a low temperature the model
          repairs unasked.

From the unmarked prompt, RLEF then starts with a model that can read feedback but seldom does.
Command: make warm-start
Expected: at most 90 minutes on two cores; four in five marked repairs right word for word; 1@3 on test_500 between 20
and 60 unmarked.

The baselines go on from the shipped warm start. Source: Gehring et al. (ICML 2025), A.3 and B.4, scaled down:

  successes  learns the last responses of successful episodes (A.3), here of as many rollouts as the demo's training
             makes. Evaluated as a run of RLEF:

    python -m rlef_jax.evaluate --config=configs/tiny.py --split=train --problems=6400 --temperature=1 --top-p=1 \
        --out=runs/sampled
    python -m rlef_jax.sft --config=configs/tiny_sft.py:successes --workdir=runs/successes
    python -m rlef_jax.evaluate --workdir=runs/successes

  repairs    learns right programs behind the failed first responses of a single-turn run (B.4):

    python -m rlef_jax.train --config=configs/tiny.py:single_turn --workdir=runs/single_turn
    python -m rlef_jax.sft --config=configs/tiny_sft.py:repairs --workdir=runs/repairs
    python -m rlef_jax.evaluate --workdir=runs/single_turn --repairer=runs/repairs
"""

from ml_collections import ConfigDict

from rlef_jax.config import base_config, unknown_variant

VARIANTS = ("", "habits", "successes", "repairs")


def get_config(variant: str = "") -> ConfigDict:
    config = base_config()
    config.episode.max_failures_shown = 1  # as in configs/tiny.py
    config.episode.max_text_chars = 120
    config.episode.max_new_tokens = 80
    config.ppo.microbatch_rows = config.sft.batch_rows
    config.ppo.buckets = tuple(range(32, config.episode.context + 1, 32))
    if variant in ("", "habits"):
        _warm_start(config)
    elif variant in ("successes", "repairs"):
        _baseline(config)
    if variant == "habits":
        config.seed = 1  # other problems
        config.model.init = "runs/warm_start/policy.npz"
        config.sft.dialogues = 25_600
        config.sft.learning_rate = 1e-3
        config.sft.unmarked_habit = 0.65
    elif variant == "successes":
        config.sft.source, config.sft.data = "episodes", ("runs/sampled",)
    elif variant == "repairs":
        config.sft.source, config.sft.data = "repairs", ("runs/single_turn",)
    elif variant:
        raise unknown_variant(variant, VARIANTS)
    return config


def _warm_start(config: ConfigDict) -> None:
    config.model.init = ""
    config.sft.marked_share = 0.5
    config.sft.dialogues = 160_000
    config.sft.learning_rate = 2e-3


def _baseline(config: ConfigDict) -> None:
    config.sft.epochs = 2
    config.sft.batch_rows = 64
    config.sft.learning_rate = 5e-4
    config.sft.warmup_steps, config.sft.final_rate = 10, 0.0
    config.sft.valid_share = 0.05
    config.sft.checkpoint_every = 50
    config.ppo.row_episodes = 4
    config.ppo.buckets = (256,)
    config.ppo.microbatch_rows = 16
