"""Llama 3.2 1B Instruct on CodeContests with one H100: to start with.

Source: ours; the method as in `llama31_8b.py`, beside this file, in smaller iterations and with a shorter context.
Command: python -m rlef_jax.train --config=configs/llama32_1b.py --workdir=runs/1b     (one H100 trains and samples)
Expected: it has been compiled for an H100 and never run there; no score is known.
Plan: trains in 47.1 GiB (gradients), samples in 50.7 GiB (decode 4096 plain) of 72.8 a card: fits

Needs Meta's weights as Hugging Face has them (meta-llama/Llama-3.2-1B-Instruct) in `weights/llama32_1b_instruct`.
"""

from pathlib import Path

from ml_collections import ConfigDict

from rlef_jax.config import load, unknown_variant


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise unknown_variant(variant, ("",))
    config = load(str(Path(__file__).resolve().with_name("llama31_8b.py")))

    m = config.model
    m.d_model, m.n_layers, m.n_heads, m.n_kv_heads, m.d_head, m.d_ff = 2048, 16, 32, 8, 64, 8192
    m.tie_embeddings, m.rope_scaling = True, (32.0, 1.0, 4.0, 8192.0)
    m.init = "weights/llama32_1b_instruct"
    config.data.max_prompt_tokens = 2048
    config.episode.context, config.episode.max_new_tokens = 4096, 1024
    config.sampling.cache_gib = 16.0
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 1, 1, 1
    p = config.ppo
    p.rollouts, p.updates, p.microbatch_rows, p.buckets = 256, 4, 4, (1024, 2048, 4096)
    config.train.iterations = 1000
    config.eval.problems = 50
    config.plan.sampler_devices = 0
    return config
