"""What our models are compared with `transformers` on. NumPy only: the reference runs in an environment without JAX."""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np

LENGTH = 48  # tokens of the small models' row
STRIDE = 6  # logits of every sixth position are kept

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 100.0,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def _scaled(**changes: Any) -> dict[str, Any]:
    return {"rope_scaling": {**SCALING, **changes}}


# Each field of a Llama config that changes the output without changing every shape, by what it is changed to.
LLAMA_FIELDS: dict[str, dict[str, Any]] = {
    "rope_theta": {"rope_theta": 5000.0},
    "rms_norm_eps": {"rms_norm_eps": 0.05},
    "tie_word_embeddings": {"tie_word_embeddings": True},
    "head_dim": {"head_dim": 16},
    "num_key_value_heads": {"num_key_value_heads": 1},
    "num_attention_heads": {"num_attention_heads": 2, "head_dim": 16, "num_key_value_heads": 1},
    "rope_scaling": _scaled(),
    "rope_scaling.factor": _scaled(factor=2.0),
    "rope_scaling.low_freq_factor": _scaled(low_freq_factor=0.25),
    "rope_scaling.high_freq_factor": _scaled(high_freq_factor=12.0),
    "rope_scaling.original_max_position_embeddings": _scaled(original_max_position_embeddings=128),
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    **{f"llama {name}": {**LLAMA, **changes} for name, changes in LLAMA_FIELDS.items()},
    "qwen2": {**LLAMA, "model_type": "qwen2", "tie_word_embeddings": True, "head_dim": 8},
    "qwen3": {**LLAMA, "model_type": "qwen3", "head_dim": 16},
}

WINDOW = 10  # of the small models' sliding windows, less than LENGTH
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
GEMMA3: dict[str, Any] = {
    **{key: value for key, value in LLAMA.items() if key != "hidden_act"},
    "model_type": "gemma3_text",
    "head_dim": 16,
    "tie_word_embeddings": True,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 24,
    "sliding_window": WINDOW,
    "sliding_window_pattern": 2,
    "rope_local_base_freq": 20.0,
    "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    "rope_theta": 1000.0,
}
SMOLLM3 = {**LLAMA, "model_type": "smollm3", "pad_token_id": None, "no_rope_layers": [1, 0]}
FAMILIES |= {
    "llama linear": {**LLAMA, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "llama yarn": {**LLAMA, "rope_scaling": YARN},
    "qwen2 window": {**FAMILIES["qwen2"], "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "mistral": {**LLAMA, "model_type": "mistral", "sliding_window": WINDOW},
    "smollm3": SMOLLM3,
    "smollm3 window": {**SMOLLM3, "use_sliding_window": True, "sliding_window": WINDOW},
    "olmo2": {**LLAMA, "model_type": "olmo2", "pad_token_id": None},
    "gemma3_text": GEMMA3,
}
# Fields of ModelConfig that change the output and no parameter's shape, by the model that has each.
FIELDS = (
    ("llama yarn", "rope_scaling"), ("qwen2 window", "window_layers"), ("mistral", "window"),
    ("smollm3", "rope_layers"),
    *(("gemma3_text", field) for field in (
        "rope_scaling", "window", "window_layers", "window_rope_theta", "query_scalar", "norm_plus_one", "activation",
        "scale_embeddings",
    )),
)  # fmt: skip
# Each architecture's small model continues the row's first tokens by the likeliest ones. With tied embeddings some
# would say one token for ever.
_ARCHITECTURES = ("llama", "qwen2", "qwen3", "mistral", "smollm3", "olmo2", "gemma3_text")
GREEDY = {name: {**FAMILIES[name], "tie_word_embeddings": False} for name in _ARCHITECTURES}
PROMPT, NEW = 20, 64
# Scalings of rotary embeddings whose frequencies are compared, heads of 32 channels.
ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": SCALING,
    "yarn": YARN,
    "yarn betas": {**YARN, "beta_fast": 4.0, "beta_slow": 0.5},
    "yarn untruncated": {**YARN, "beta_fast": 4.0, "truncate": False},
    "yarn attention_factor": {**YARN, "attention_factor": 0.7},
    "yarn mscale": {**YARN, "mscale": 2.0, "mscale_all_dim": 0.5},
    "yarn mscale alone": {**YARN, "mscale": 2.0},
    "yarn of one pair": {**YARN, "beta_fast": 1.01, "beta_slow": 1.0, "original_max_position_embeddings": 8},
}
ROPE_BASE = {**LLAMA, "head_dim": 32}


# Adapters, by what peft.LoraConfig is given beside the model's config.
LORA: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama, all": (
        LLAMA,
        {"r": 4, "lora_alpha": 6, "target_modules": [
            "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
        ]},
    ),
    "qwen2, some": (
        FAMILIES["qwen2"],
        {"r": 2, "lora_alpha": 1, "target_modules": ["k_proj", "o_proj", "down_proj"], "layers_to_transform": [1]},
    ),
}  # fmt: skip


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A weight by its Hugging Face name: float32, far from initialisation, so that everything it passes matters."""
    draw = np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape)
    if name.endswith("norm.weight"):
        return (1.0 + 0.3 * draw).astype(np.float32)
    if name.endswith("bias"):
        return draw.astype(np.float32)
    return (1.5 * draw / math.sqrt(shape[-1])).astype(np.float32)


def tokens() -> np.ndarray:
    """The small models' row: int32 [1, LENGTH]."""
    return np.random.default_rng(0).integers(0, LLAMA["vocab_size"], (1, LENGTH)).astype(np.int32)


_TASKS = (
    "adds two numbers", "reverses a string", "checks whether a number is prime", "counts the vowels of a word",
    "finds the largest number of a list", "sorts words by their length", "computes the n-th Fibonacci number",
    "merges two sorted lists", "removes duplicates from a list", "reads a file and counts its lines",
)  # fmt: skip
QUESTIONS = (
    *(f"Write a Python function that {task}." for task in _TASKS),
    "What is the capital of France?",
    "Explain recursion to a child.",
    "Translate to German: good morning, my friend.",
    "Give me three names for a cat, and say why.",
    "What is 17 * 23? Think step by step.",
    "Why is the sky blue?",
    "List the first ten prime numbers.",
    "Write a haiku about the sea.",
    "What does `sorted(x, key=len)` do in Python?",
    "Who wrote Hamlet, and when?",
)
_FEEDBACK = (
    "Your code failed the following tests:\n\n- input `3\n1 2 3\n` failed:\nExpected output `6\n` but got `7\n`\n"
    '- input `0` failed:\nTraceback (most recent call last):\n  File "solution.py", line 2, in <module>\n'
    "ZeroDivisionError: division by zero\n\nGive it another try.\n"
)
_CODE = "Here you are:\n\n```python\ndef f(x):\n    return x\n\n\nprint(f(int(input())))\n```"


def conversation(*texts: str, system: str = "") -> list[dict[str, str]]:
    """Messages of user and assistant by turns, after a system message where there is one."""
    head = [{"role": "system", "content": system}] if system else []
    return head + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


CONVERSATIONS = [
    conversation("Hello"),
    conversation("Hello", system="You write Python."),
    conversation("Sum the numbers.", _CODE, _FEEDBACK),
    conversation("Sum the numbers.", _CODE, _FEEDBACK, "Oh.\n" + _CODE, _FEEDBACK, system="Be careful."),
    conversation("naïve café — 東京 🙂\tx  y\n\n\n    1 12 123\n", "ok", "\n\n  indented\n"),
]
