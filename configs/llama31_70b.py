"""Llama 3.1 70B Instruct on CodeContests.

Source: Gehring et al. (ICML 2025), section 3 and appendix A.1: as for 8B, with 8,000 updates.
Command: python -m rlef_jax.train --config=configs/llama31_70b.py --workdir=runs/70b     (1024 H100s train, 1280 sample)
Expected: nobody has run it. The paper reports 1@3 of 37.5 on valid and 40.1 on test, from 25.9 and 27.5.
Plan: trains in 61.1 GiB (gradients), samples in 70.9 GiB (new weights arrive) of 72.8 a card: fits

What isn't set here is as in `llama31_8b.py`, beside this file.
"""

from pathlib import Path

from ml_collections import ConfigDict

from rlef_jax.config import load, unknown_variant


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise unknown_variant(variant, ("",))
    config = load(str(Path(__file__).resolve().with_name("llama31_8b.py")))

    m = config.model
    m.d_model, m.n_layers, m.n_heads, m.n_kv_heads, m.d_head, m.d_ff = 8192, 80, 64, 8, 128, 28672
    m.init = "weights/llama31_70b_instruct"
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 16, 8, 8  # 1024 GPUs
    # Two rows for each 8 GPUs, an update's 256 at once: `fsdp` crosses nodes, and weights travel once instead of twice.
    config.ppo.microbatch_rows = 256
    config.sampling.tensor = 8  # a card holds an eighth of the weights and of each token's keys and values
    config.sampling.cache_gib = 38.0  # beside old and new weights
    config.train.iterations = 2000  # 8,000 updates
    config.plan.sampler_devices = 1280
    return config
