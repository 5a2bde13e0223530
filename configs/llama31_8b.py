"""Llama 3.1 8B Instruct on CodeContests: the paper's main run.

Source: Gehring et al. (ICML 2025), section 3 and appendix A.1. Values that the paper doesn't give are marked "ours".
Command: python -m rlef_jax.train --config=configs/llama31_8b.py --workdir=runs/8b     (128 H100s train, 160 sample)
Expected: nobody has run it. The paper reports 1@3 of 17.2 on valid and 16.1 on test, from 8.9 and 10.5, after 12,000
updates in about 20 hours, estimated on 200 rollouts a problem (B.1); here an evaluation within training makes one.

Plan: trains in 41.1 GiB (reduce), samples in 69.9 GiB (new weights arrive) of 72.8 a card: fits

Where it still deviates: iterations are synchronous; standard output is shown up to 20,000 characters; the wall clock
decides only where the processor was free (below).

Variants (configs/llama31_8b.py:NAME):
  node  one node of 8 H100s trains and samples in turn; the cache's memory is free while it trains.
        Plan: trains in 43.0 GiB (reduce), samples in 68.4 GiB (prefill 512 later) of 72.8 a card: fits
  64    64 H100s: 32 train, 32 sample.
        Plan: trains in 41.1 GiB (reduce), samples in 69.9 GiB (new weights arrive) of 72.8 a card: fits
  lora  adapters of rank 16 beside frozen bfloat16 weights (ours), on one node of 8 H100s in turn. Each card holds the
        base once for policy, reference and critic, and gathers nothing. Its memory has not been planned yet, and the
        learning rate is a guess.

Needs Meta's weights as Hugging Face has them (meta-llama/Llama-3.1-8B-Instruct: config.json, safetensors and
tokenizer.json) in `weights/llama31_8b_instruct`, or where --config.model.init=FOLDER says; and CodeContests in
`data/code_contests` (docs/code_contests.md). The shape below is in the weights' folder too: a folder of another model
is an error.
"""

from ml_collections import ConfigDict

from rlef_jax.config import base_config, unknown_variant

VARIANTS = ("", "node", "64", "lora")


def get_config(variant: str = "") -> ConfigDict:
    if variant not in VARIANTS:
        raise unknown_variant(variant, VARIANTS)
    config = base_config()

    m = config.model
    m.d_model, m.n_layers, m.n_heads, m.n_kv_heads, m.d_head, m.d_ff = 4096, 32, 32, 8, 128, 14336
    m.vocab_size, m.rope_theta, m.norm_eps, m.tie_embeddings = 128_256, 500_000.0, 1e-5, False
    m.rope_scaling = (8.0, 1.0, 4.0, 8192.0)
    m.init = "weights/llama31_8b_instruct"
    # At a learning rate of 2e-7 a bfloat16 weight never moves: float32 masters, bfloat16 arithmetic.
    m.param_dtype, m.compute_dtype, m.remat, m.unroll = "float32", "bfloat16", "full", False
    m.attention = "dot_product"  # cuDNN

    config.data.name, config.data.dir = "code_contests", "data/code_contests"
    config.data.max_prompt_tokens = 4096  # ours: room for a response to the longest, and for a second turn
    config.episode.max_turns = 3
    config.episode.context = 8192  # ours
    config.episode.max_new_tokens = 2048  # ours
    config.episode.max_text_chars = 0  # verbatim (C.1)
    config.episode.syntax_errors = "per_test"  # as other errors (C.1)
    config.sampling.temperature, config.sampling.top_p, config.sampling.top_k = 1.0, 1.0, 0
    config.sampling.rows, config.sampling.workers = 128, 1  # ours, as is what follows
    config.sampling.min_ready_fraction = 0.0
    config.sampling.decode_steps = 16
    config.sampling.cache_gib, config.sampling.cache_lengths = 40.0, ()  # 327,680 tokens on an H100 beside the weights
    config.sampling.prefill_chunks, config.sampling.prefill_tokens = (512,), 2048
    config.execution.require_python = True
    config.execution.clean_exit, config.execution.exact_integers = False, False  # CodeContests' own judge (A.2)
    config.execution.wall_s, config.execution.memory_mb = 10.0, 1024
    # Ours: the paper's limit is by the wall clock, which on nodes that train as well would fail right programs. Whoever
    # was given 10 s of a processor is out of time as in the paper, and nobody else before 100 s.
    config.execution.wall_patience = 10.0

    p = config.ppo
    p.rollouts, p.updates = 1024, 4
    p.learning_rate, p.warmup_steps, p.weight_decay = 2e-7, 50, 0.1
    p.kl_beta, p.clip_eps, p.value_clip = 0.05, 0.2, 0.2
    p.importance, p.separate_critic = "paper", True
    p.microbatch_rows = 128  # one row a GPU
    p.buckets = (1024, 2048, 4096, 8192)  # ours

    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 16, 8, 1  # 128 GPUs
    config.train.iterations = 3000  # 12,000 updates
    config.train.checkpoint_every = 200  # with each evaluation
    config.eval.split, config.eval.valid_split = "test", "valid"
    config.eval.every = 200  # 800 updates
    config.eval.temperature, config.eval.top_p = 0.2, 0.95
    config.plan.target, config.plan.sampler_devices = "h100", 160
    if variant == "node":
        p.microbatch_rows = 8
        config.mesh.data, config.mesh.fsdp = 1, 8
        config.sampling.rows, config.sampling.tensor = 256, 8  # one model over all cards, for the training's state
        config.plan.sampler_devices = 0
    elif variant == "64":
        p.microbatch_rows = 32
        config.mesh.data, config.mesh.fsdp = 4, 8
        config.plan.sampler_devices = 32
    elif variant == "lora":
        m.lora_rank, m.lora_alpha, m.param_dtype = 16, 32.0, "bfloat16"
        p.learning_rate = 1e-5  # fifty times the paper's: adapters start at nothing
        p.microbatch_rows = 8
        config.mesh.data, config.mesh.fsdp = 8, 1
        config.sampling.rows, config.sampling.data, config.sampling.cache_gib = 256, 8, 16.0
        config.plan.sampler_devices = 0
    return config
