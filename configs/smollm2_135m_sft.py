"""SmolLM2's warm start: adapters learn to write MiniContests' programs, and to read feedback when they are told to.

Source: ours. As configs/tiny_sft.py: half of the dialogues open with a careful author's system line, every repair
right; the others carry no mark and seldom repair rightly. Model, adapters and families are those of
configs/smollm2_135m.py:lora, beside this file.
Command: make smollm2 && python -m rlef_jax.sft --config=configs/smollm2_135m_sft.py --workdir=runs/smollm2_sft
Expected: the shipped adapters (rlef_jax/assets/smollm2_warm_start/made_by.json has their commands) were made by 68
steps on eleven families and 96 on these nine: 1@3 is 50 on 60 problems of valid. The schedule's end wasn't reached.
"""

from pathlib import Path

from ml_collections import ConfigDict

from rlef_jax.config import load, unknown_variant

VARIANTS = ("",)


def get_config(variant: str = "") -> ConfigDict:
    if variant not in VARIANTS:
        raise unknown_variant(variant, VARIANTS)
    config = load(str(Path(__file__).resolve().with_name("smollm2_135m.py")) + ":lora")
    config.model.lora_init = ""
    config.episode.context = 512
    config.ppo.buckets = (256, 512, 768)  # eight dialogues fill no more than three or four rows of 768
    s = config.sft
    s.marked_share, s.unmarked_right_repairs, s.unmarked_habit = 0.5, 0.3, 0.0
    s.dialogues, s.batch_rows = 2048, 8
    s.learning_rate, s.warmup_steps, s.final_rate, s.weight_decay = 1e-3, 8, 0.05, 0.0
    s.checkpoint_every, s.log_every, s.probe_problems = 32, 8, 16
    return config
