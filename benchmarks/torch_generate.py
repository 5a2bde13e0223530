"""The sampler benchmark's baseline, in the environment of `make bench-env`: transformers.generate on torch.

Reads one JSON line per order from stdin, {"model": {...}, "rows": 32, "prompt": 128, "new": 128}, perhaps "dtype", and
answers each with {"seconds": ..., "device": "cpu" or "cuda"}. Models have random weights, which cost the same, and lie
on a GPU where torch finds one.
"""

import json
import sys
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def build(sizes: dict, dtype: torch.dtype) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=sizes["vocab_size"], hidden_size=sizes["d_model"], num_hidden_layers=sizes["n_layers"],
        num_attention_heads=sizes["n_heads"], num_key_value_heads=sizes["n_kv_heads"], head_dim=sizes["d_head"],
        intermediate_size=sizes["d_ff"], tie_word_embeddings=sizes.get("tie_embeddings", True),
        max_position_embeddings=8192, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(DEVICE, dtype).eval()


def main() -> None:
    models: dict[str, LlamaForCausalLM] = {}
    for line in sys.stdin:
        order = json.loads(line)
        dtype = getattr(torch, order.get("dtype", "float32"))
        name = f"{json.dumps(order['model'])} {dtype}"
        model = models.setdefault(name, models.get(name) or build(order["model"], dtype))
        ids = torch.randint(1, order["model"]["vocab_size"], (order["rows"], order["prompt"]), device=DEVICE)
        length = {"max_new_tokens": order["new"], "min_new_tokens": order["new"]}
        began = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, **length).cpu()
        seconds = time.perf_counter() - began
        assert out.shape == (order["rows"], order["prompt"] + order["new"])
        print(json.dumps({"seconds": seconds, "device": DEVICE}), flush=True)


if __name__ == "__main__":
    main()
