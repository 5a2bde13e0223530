"""Llama 3.0 8B Instruct on CodeContests: the paper's second 8B model.

Source: Gehring et al. (ICML 2025), table 1 and appendix A.1: as for Llama 3.1 8B.
Command: python -m rlef_jax.train --config=configs/llama30_8b.py --workdir=runs/8b_30     (128 H100s train, 160 sample)
Expected: nobody has run it. The paper reports 1@3 of 12.5 on valid and 12.1 on test, from 4.1 and 3.2.
Plan: trains in 41.1 GiB (reduce), samples in 69.9 GiB (new weights arrive) of 72.8 a card: fits

What isn't set here is as in `llama31_8b.py`, beside this file. Needs Meta's weights as Hugging Face has them
(meta-llama/Meta-Llama-3-8B-Instruct) in `weights/llama30_8b_instruct`.
"""

from pathlib import Path

from ml_collections import ConfigDict

from rlef_jax.config import load, unknown_variant


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise unknown_variant(variant, ("",))
    config = load(str(Path(__file__).resolve().with_name("llama31_8b.py")))
    config.model.rope_scaling = ()
    config.model.init = "weights/llama30_8b_instruct"
    return config
