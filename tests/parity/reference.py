"""What `transformers` on torch computes, as files: .bench-env/bin/python tests/parity/reference.py OUTPUT [--gguf FILE]

Runs in the environment of `make bench-env`. Writes families.npz (small random models), lora.npz (such models with
adapters, by `peft`) and, with --gguf, smollm2.npz and smollm2_chat.json. With --full all logits of SmolLM2's row
instead of a few in each position. With --adapters it reads what tests/parity/lora_folder.py has written.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parent))
import cases  # noqa: E402

ROW, ENTRIES, NEW = 512, 24, 128
LICENSE = Path(__file__).resolve().parents[2] / "LICENSE"


def family_model(config: dict) -> torch.nn.Module:
    """A small model with the weights of `cases.tensor`."""
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**config), attn_implementation="eager", dtype=torch.float32
    )
    named = {name: torch.from_numpy(cases.tensor(name, tuple(p.shape))) for name, p in model.named_parameters()}
    missing = set(model.state_dict()) - set(named)
    assert missing <= {"lm_head.weight"}, missing
    model.load_state_dict(named, strict=False)
    return model.eval()


def family_logits(config: dict) -> np.ndarray:
    """Logits [LENGTH / STRIDE, V]."""
    with torch.no_grad():
        return family_model(config)(torch.from_numpy(cases.tokens()).long()).logits[0, :: cases.STRIDE].numpy()


def family_continuation(config: dict) -> np.ndarray:
    """The likeliest tokens after the row's first ones: int32 [NEW]."""
    prompt = cases.tokens()[0, : cases.PROMPT].tolist()
    return greedy(family_model(config), [prompt], cases.NEW)[0].astype(np.int32)


def lora_logits(config: dict, lora: dict) -> dict[str, np.ndarray]:
    """Of a small model with adapters of `cases.tensor`: {"": logits [LENGTH / STRIDE, V], " names": their tensors}."""
    model = peft.get_peft_model(family_model(config), peft.LoraConfig(task_type="CAUSAL_LM", **lora))
    shapes = {name: tuple(p.shape) for name, p in peft.get_peft_model_state_dict(model).items()}
    peft.set_peft_model_state_dict(
        model, {name: torch.from_numpy(cases.tensor(name, shape)) for name, shape in shapes.items()}
    )
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(cases.tokens()).long()).logits[0, :: cases.STRIDE].numpy()
    return {"": logits, " names": np.array(sorted(shapes))}


def check_adapters(folder: Path) -> None:
    """Fails unless `peft` computes from `adapters` beside `base` what `logits.npy` has, apart and merged."""
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, folder / "adapters").eval()
    tokens, expected = torch.from_numpy(cases.tokens()).long(), np.load(folder / "logits.npy")
    with torch.no_grad():
        apart = np.abs(model(tokens).logits[0].numpy() - expected).max()
        merged = np.abs(model.merge_and_unload()(tokens).logits[0].numpy() - expected).max()
    assert max(apart, merged) < 1e-4, (apart, merged)
    print(f"{folder}: peft {peft.__version__} computes the same logits, within {apart:.1e} (merged {merged:.1e})")


def rope(scaling: dict) -> np.ndarray:
    """Frequencies, and behind them what rotated queries and keys are multiplied by: float32 [H / 2 + 1]."""
    config = transformers.AutoConfig.for_model(**cases.ROPE_BASE, rope_scaling=dict(scaling))
    compute = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS[scaling["rope_type"]]
    frequencies, factor = compute(config)
    return np.append(frequencies.numpy(), np.float32(factor))


def greedy(model: torch.nn.Module, prompts: list[list[int]], new: int = NEW) -> np.ndarray:
    """`generate` without sampling, all prompts at once, padded at the left: [prompts, new]."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    length = {"max_new_tokens": new, "min_new_tokens": new, "eos_token_id": None, "pad_token_id": 0}
    return model.generate(ids, attention_mask=mask, do_sample=False, **length)[:, longest:].numpy()


def smollm2(gguf: Path, full: bool) -> tuple[dict[str, np.ndarray], list[list[int]]]:
    """(arrays, ids of each conversation with the generation prompt)."""
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
    model = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()

    def chat(messages: list[dict[str, str]]) -> list[int]:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    row = np.array(tokenizer(LICENSE.read_text(), add_special_tokens=False)["input_ids"][:ROW])
    prompts = [chat(cases.conversation(question)) for question in cases.QUESTIONS]
    with torch.no_grad():
        written = greedy(model, prompts)
        tokens = torch.from_numpy(row)[None].long()
        logits = model(tokens).logits[0].numpy()
        exact = model.double()(tokens).logits[0].float().numpy()
    shown = np.random.default_rng(1).integers(0, logits.shape[1], (ROW, ENTRIES))
    golden_logits = {"logits": logits, "logits_float64": exact}
    if not full:
        golden_logits = {"entries": shown} | {
            name: np.take_along_axis(all_, shown, axis=1) for name, all_ in golden_logits.items()
        }
    arrays = {
        "tokens": row.astype(np.int32),
        "prompts": np.concatenate(prompts).astype(np.int32),
        "lengths": np.array([len(p) for p in prompts], np.int32),
        "continuations": written.astype(np.int32),
        "logsumexp": torch.logsumexp(torch.from_numpy(logits), -1).numpy(),
        **golden_logits,
    }
    return arrays, [chat(messages) for messages in cases.CONVERSATIONS]


def check_exported(folder: Path, arrays: dict[str, np.ndarray], chats: list[list[int]]) -> None:
    """Fails unless transformers reads the same model and tokenizer out of a folder that rlef_jax.export wrote."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(arrays["tokens"])[None].long()).logits[0]
    difference = np.abs(torch.logsumexp(logits, -1).numpy() - arrays["logsumexp"]).max()
    text = [tokenizer.apply_chat_template(c, add_generation_prompt=True, tokenize=False) for c in cases.CONVERSATIONS]
    assert difference < 1e-4, difference
    assert [tokenizer(t, add_special_tokens=False)["input_ids"] for t in text] == chats
    print(f"{folder}: transformers reads the same model (log-sum-exp within {difference:.1e}) and the same chat ids")
    _check_generation(tokenizer, model, arrays["continuations"])
    print(f"{folder}: transformers generates the same by its chat template and generation_config.json")


def _check_generation(tokenizer: Any, model: torch.nn.Module, continuations: np.ndarray) -> None:
    """Fails unless `generate`, set only by the folder's files, writes `continuations` [questions, NEW] to their end.

    Of the questions whose continuation ends, one at a time: unlike in `greedy` there is no padding.
    """
    stops = model.generation_config.eos_token_id
    rows = continuations.tolist()
    ended = [next((i + 1 for i, token in enumerate(row) if token in stops), None) for row in rows]
    for question, wanted, length in zip(cases.QUESTIONS, rows, ended, strict=True):
        if length is None:
            continue
        inputs = tokenizer.apply_chat_template(
            cases.conversation(question), add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        ids = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
        assert ids == wanted[:length], (question, tokenizer.decode(ids), tokenizer.decode(wanted))
    assert any(ended), "no continuation ends"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--exported", type=Path, help="a folder of rlef_jax.export that must hold the same model")
    parser.add_argument("--adapters", type=Path, help="a folder of tests/parity/lora_folder.py that peft must read")
    args = parser.parse_args()
    torch.manual_seed(0)
    args.output.mkdir(parents=True, exist_ok=True)
    families = {name: family_logits(config) for name, config in cases.FAMILIES.items()}
    families |= {f"{name} greedy": family_continuation(config) for name, config in cases.GREEDY.items()}
    families |= {f"rope {name}": rope(scaling) for name, scaling in cases.ROPES.items()}
    np.savez_compressed(args.output / "families.npz", **families)
    lora = {name: lora_logits(*case) for name, case in cases.LORA.items()}
    np.savez_compressed(
        args.output / "lora.npz", **{name + end: a for name, of in lora.items() for end, a in of.items()}
    )
    if args.adapters:
        check_adapters(args.adapters)
    if args.gguf:
        arrays, chats = smollm2(args.gguf, args.full)
        save = np.savez if args.full else np.savez_compressed
        save(args.output / "smollm2.npz", **arrays)
        (args.output / "smollm2_chat.json").write_text(json.dumps(chats) + "\n")
        if args.exported:
            check_exported(args.exported, arrays, chats)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}: {args.output}")


if __name__ == "__main__":
    main()
