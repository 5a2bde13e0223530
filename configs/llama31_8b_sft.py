"""Llama 3.1 8B Instruct fine-tuned on successful rollouts: the paper's supervised baseline.

Source: Gehring et al. (ICML 2025), appendices A.3 and B.4. Values that the paper doesn't give are marked "ours".
Expected: nobody has run it. The paper reports 1@3 of 10.3 on valid and 10.0 on test, where RLEF has 17.2 and 16.1; with
the repairer behind the single-turn policy 14.8 and 12.6.

The data are 100 rollouts of the 70B model on each training problem, of which the paper kept 313,639. Command:

    python -m rlef_jax.evaluate --config=configs/llama31_70b.py --split=train --samples=300 --top-p=0.95 \
        --config.eval.temperature_range=0.1,1 --out=runs/70b_train
    python -m rlef_jax.sft --config=configs/llama31_8b_sft.py --workdir=runs/8b_sft     (64 H100s)
    python -m rlef_jax.evaluate --workdir=runs/8b_sft --split=valid --checkpoint=STEP   (each; the best is taken)

The paper swept learning rates of 5e-6 and 2e-6 and 2 and 3 epochs, and evaluated every 200 steps.

Variants (configs/llama31_8b_sft.py:NAME):
  repair  the repairer of B.4, on the failures of a single-turn run (`--config.episode.max_turns=1`) in runs/8b_single.
          The paper swept 5e-6, 2e-6 and 1e-6 and 1 and 2 epochs, and evaluated every 400 steps.

What isn't set here is as in `llama31_8b.py`, beside this file, whose weights and data it needs.
"""

from pathlib import Path

from ml_collections import ConfigDict

from rlef_jax.config import load, unknown_variant

VARIANTS = ("", "repair")


def get_config(variant: str = "") -> ConfigDict:
    if variant not in VARIANTS:
        raise unknown_variant(variant, VARIANTS)
    config = load(str(Path(__file__).resolve().with_name("llama31_8b.py")))
    s = config.sft
    s.source, s.data, s.learned = "episodes", ("runs/70b_train",), "last"
    s.batch_rows, s.epochs, s.learning_rate = 64, 2, 5e-6
    s.warmup_steps, s.final_rate, s.weight_decay = 10, 0.0, 0.1
    s.clip_norm, s.adam_b2 = 0.0, 0.999  # ours, as in RLEF's updates
    s.checkpoint_every = 200
    config.train.keep_checkpoints = 100  # all: the best is chosen by its score on valid
    config.ppo.microbatch_rows = 64  # one row a GPU
    config.mesh.data, config.mesh.fsdp = 8, 8
    if variant == "repair":
        s.source, s.data = "repairs", ("runs/8b_single",)
        s.checkpoint_every = 400
    return config
