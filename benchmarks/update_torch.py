"""The baseline of benchmarks/update.py: plain torch, in the environment of `make bench-env`.

    .bench-env/bin/python benchmarks/update_torch.py FOLDER

A `transformers` Llama with a linear value head makes the same PPO step (forward, both losses, backward, AdamW) on the
batch and weights that FOLDER holds. For each line on stdin it makes one and prints what it took as a line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM


def build_model(cfg: dict, weights: dict) -> LlamaForCausalLM:
    """The model with our weights: query head k * R + r is `qkv[:, :, k, r]`, then group k's keys and values."""
    torch.set_grad_enabled(True)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=cfg["vocab_size"], hidden_size=cfg["d_model"], num_hidden_layers=cfg["n_layers"],
            num_attention_heads=cfg["n_heads"], num_key_value_heads=cfg["n_kv_heads"], head_dim=cfg["d_head"],
            intermediate_size=cfg["d_ff"], rms_norm_eps=cfg["norm_eps"], tie_word_embeddings=cfg["tie_embeddings"],
            max_position_embeddings=cfg["max_positions"],
            rope_parameters={"rope_type": "default", "rope_theta": cfg["rope_theta"]}, attn_implementation="sdpa",
        )
    )  # fmt: skip
    d, r = cfg["d_model"], cfg["n_heads"] // cfg["n_kv_heads"]
    state = {"model.embed_tokens.weight": weights["embed"], "model.norm.weight": weights["final_norm"]}
    state["lm_head.weight"] = weights["embed" if cfg["tie_embeddings"] else "unembed"]
    for i in range(cfg["n_layers"]):
        layer = {name.removeprefix("layers/"): w[i] for name, w in weights.items() if name.startswith("layers/")}
        qkv, at = layer["qkv"], f"model.layers.{i}."
        state |= {
            at + "self_attn.q_proj.weight": qkv[:, :, :r].reshape(d, -1).T,
            at + "self_attn.k_proj.weight": qkv[:, :, r].reshape(d, -1).T,
            at + "self_attn.v_proj.weight": qkv[:, :, r + 1].reshape(d, -1).T,
            at + "self_attn.o_proj.weight": layer["attn_out"].reshape(-1, d).T,
            at + "mlp.gate_proj.weight": layer["gate"].T,
            at + "mlp.up_proj.weight": layer["up"].T,
            at + "mlp.down_proj.weight": layer["down"].T,
            at + "input_layernorm.weight": layer["attn_norm"],
            at + "post_attention_layernorm.weight": layer["mlp_norm"],
        }
    model.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(w)) for name, w in state.items()})
    return model.train()


def add_adapters(model: LlamaForCausalLM, lora: dict) -> None:
    """`peft`'s adapters in the upper layers, the rest frozen."""
    from peft import LoraConfig, inject_adapter_in_model

    layers = len(model.model.layers)
    inject_adapter_in_model(
        LoraConfig(
            r=lora["rank"], lora_alpha=lora["alpha"], target_modules=lora["targets"],
            layers_to_transform=list(range(layers - lora["layers"], layers)),
        ),
        model,
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)


def objective(model: LlamaForCausalLM, head: torch.nn.Linear, b: dict[str, torch.Tensor]) -> torch.Tensor:
    """Policy loss over action tokens plus value loss over turns, as in rlef_jax/ppo/losses.py ("paper")."""
    hidden = model.model(input_ids=b["tokens"], use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[:, :-1])
    logp = -torch.nn.functional.cross_entropy(logits.flatten(0, 1), b["tokens"][:, 1:].flatten(), reduction="none")
    logp = torch.nn.functional.pad(logp.view(len(hidden), -1), (1, 0))
    mask, old, advantages = b["action_mask"], b["old_logp"], b["advantages"]
    ratio = torch.exp((logp - old) * mask)
    ratio = ratio * torch.exp(torch.clamp((logp.detach() - b["behavior_logp"]) * mask, max=0.0))
    clipped = torch.clamp(ratio, 0.8, 1.2)
    policy = -(mask * torch.minimum(ratio * advantages, clipped * advantages)).sum() / mask.sum()
    at = b["turn_positions"].long()[:, :, None].expand(-1, -1, hidden.shape[-1])
    values, turns = head(hidden.gather(1, at))[:, :, 0], b["turn_mask"]
    near = torch.maximum(torch.minimum(values, b["old_values"] + 0.2), b["old_values"] - 0.2)
    worst = torch.maximum((values - b["returns"]) ** 2, (near - b["returns"]) ** 2)
    return policy + (turns * 0.5 * worst).sum() / turns.sum()


def main() -> None:
    """Serves steps until stdin ends."""
    folder = Path(sys.argv[1])
    cfg = json.loads((folder / "model.json").read_text())
    with np.load(folder / "weights.npz") as stored:
        model = build_model(cfg, {name: stored[name] for name in stored.files})
    if cfg["lora"]:
        add_adapters(model, cfg["lora"])
    with np.load(folder / "batch.npz") as stored:
        batch = {name: torch.from_numpy(stored[name]) for name in stored.files}
    batch["tokens"] = batch["tokens"].long()
    head = torch.nn.Linear(cfg["d_model"], 1)
    with np.load(folder / "head.npz") as stored, torch.no_grad():
        head.weight.copy_(torch.from_numpy(stored["w"])[None])
        head.bias.zero_()
    trained = [p for p in [*model.parameters(), *head.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.1)
    for line in sys.stdin:
        kind, began, cpu = line.strip(), time.perf_counter(), time.process_time()
        if kind == "step":
            optimizer.zero_grad(set_to_none=True)
            loss = objective(model, head, batch)
            loss.backward()
            optimizer.step()
        else:  # what old and reference log-probabilities and values take
            with torch.no_grad():
                loss = objective(model, head, batch)
        measured = {"loss": float(loss), "seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}
        peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
        print(json.dumps({**measured, "peak_gib": int(peak.split()[1]) / 2**20, "pid": os.getpid()}), flush=True)


if __name__ == "__main__":
    main()
