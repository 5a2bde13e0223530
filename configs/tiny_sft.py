"""The tiny model's supervised warm start, whose result ships inside the package.

Source: ours. Half of the dialogues open with a careful author's system line, every repair right; the rest carry no mark
and repair rightly 15 % of the time. From the unmarked prompt, RLEF then starts with a model that can read feedback but
seldom does.
Command: python -m rlef_jax.sft --config=configs/tiny_sft.py --workdir=runs/warm_start        (or: make warm-start)
Expected: at most 90 minutes on two cores; 1@3 on test_500 between 20 and 60 unmarked.
"""

from ml_collections import ConfigDict

from rlef_jax.config import base_config, unknown_variant


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise unknown_variant(variant, ("",))
    config = base_config()
    config.model.init = ""
    config.sft.dialogues = 160_000
    config.sft.marked_share = 0.5
    config.sft.learning_rate = 2e-3
    return config
