"""The tiny model's supervised warm start, whose result ships inside the package.

Source: ours. Half of the dialogues open with a careful author's system line, every repair right; the rest carry no mark
and repair rightly 15 % of the time. Two stages, since reading is learned first and best with varied wrong repairs:

  ""      from scratch, 160,000 dialogues: statements, programs, and reading feedback when marked.
  habits  goes on with 25,600 dialogues in which most unmarked programs take the commonest reading of a statement, even
          where it just failed. Without them the right repair is the likeliest one, and at a low temperature the model
          repairs unasked.

From the unmarked prompt, RLEF then starts with a model that can read feedback but seldom does.
Command: make warm-start
Expected: at most 90 minutes on two cores; four in five marked repairs right word for word; 1@3 on test_500 between 20
and 60 unmarked.
"""

from ml_collections import ConfigDict

from rlef_jax.config import base_config, unknown_variant

VARIANTS = ("", "habits")


def get_config(variant: str = "") -> ConfigDict:
    config = base_config()
    config.model.init = ""
    config.ppo.microbatch_rows = config.sft.batch_rows  # batches of dialogues of similar length: little padding
    config.ppo.buckets = tuple(range(32, config.episode.context + 1, 32))
    config.sft.marked_share = 0.5
    config.sft.dialogues = 160_000
    config.sft.learning_rate = 2e-3
    if variant == "habits":
        config.seed = 1  # other problems
        config.model.init = "runs/warm_start/policy.npz"
        config.sft.dialogues = 25_600
        config.sft.learning_rate = 1e-3
        config.sft.unmarked_habit = 0.65
    elif variant:
        raise unknown_variant(variant, VARIANTS)
    return config
