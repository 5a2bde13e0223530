"""Chat templates of published models over small tokenizers of their kinds: byte-level BPE, and SentencePiece's.

The templates (tests/templates) do what the published ones do with messages of text, without tools.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers

from rlef_jax.dialog.template import Template
from tests.helpers.byte_bpe import MARKS, TEMPLATES, WORDS, byte_bpe
from tests.parity import cases

FOLDER = Path(__file__).parents[1] / "templates"
_R1 = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")
_PHI = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")


@dataclasses.dataclass(frozen=True)
class Model:
    """A template with its tokenizer.

    Attributes:
      template: its file in tests/templates, or its name in `byte_bpe.TEMPLATES`.
      kind: of the tokenizer: "bytes", or how SentencePiece's treats a space in front: "first", "every", "none".
      marks, words: its special tokens, and those that aren't flagged so.
      special: the tokens that the template uses by name.
      notes: what of it isn't append-only (`derive.NOTES`).
      options: what the template is given.
      strips: its special tokens take the white space after them away.
    """

    template: str
    kind: str = "bytes"
    marks: tuple[str, ...] = MARKS
    words: tuple[str, ...] = WORDS
    special: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: frozenset[str] = frozenset()
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    strips: bool = False

    @property
    def text(self) -> str:
        """The template's."""
        return TEMPLATES.get(self.template) or (FOLDER / f"{self.template}.jinja").read_text(encoding="utf-8")

    def rendered(self) -> Template:
        """The template itself."""
        return Template(self.template, self.text, self.special, self.options)


def _notes(*names: str) -> frozenset[str]:
    return frozenset(names)


_LLAMA = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
_SPM = {"bos_token": "<s>", "eos_token": "</s>"}
MODELS: dict[str, Model] = {
    "llama3": Model("llama3", special=_LLAMA, notes=_notes("response")),
    "llama31": Model("llama31", special=_LLAMA, notes=_notes("response")),
    "chatml": Model("chatml"),
    "chatml_generation": Model("chatml_generation"),
    "smollm2": Model("smollm2"),
    "qwen2": Model("qwen2"),
    "qwen25": Model("qwen25"),
    "qwen3": Model("qwen3", notes=_notes("thinking")),
    "qwen3 without thinking": Model(
        "qwen3", options={"enable_thinking": False}, notes=_notes("thinking", "opening")
    ),
    "qwen3_thinking": Model("qwen3_thinking", notes=_notes("thinking", "opening")),
    "r1_distill": Model(
        "r1_distill", marks=_R1, special={"bos_token": _R1[0], "eos_token": _R1[1]}, notes=_notes("thinking", "opening")
    ),
    "smollm3": Model("smollm3", notes=_notes("response")),
    "smollm3 without thinking": Model("smollm3", options={"enable_thinking": False}, notes=_notes("response")),
    "olmo2": Model("olmo2", special={"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}),
    "phi4_mini": Model("phi4_mini", marks=_PHI, words=(), special={"eos_token": "<|endoftext|>"}, strips=True),
    "phi3": Model("phi3", marks=_PHI, words=(), strips=True),
    "qwq": Model("qwq", notes=_notes("thinking", "opening", "response")),
    "deepseek_coder": Model(
        "deepseek_coder", marks=(_R1[0], "<|EOT|>"), words=(), special={"bos_token": _R1[0], "eos_token": "<|EOT|>"}
    ),
    "exaone": Model("exaone", marks=("[BOS]", "[|endofturn|]"), words=("[|system|]", "[|user|]", "[|assistant|]")),
    "llama2": Model("llama2", "first", marks=(), words=(), special=_SPM, notes=_notes("response")),
    "mistral_v3": Model(
        "mistral_v3", "every", marks=("[INST]", "[/INST]"), words=(), special=_SPM, notes=_notes("response", "system")
    ),
    "mistral_v3 first": Model(
        "mistral_v3", "first", marks=("[INST]", "[/INST]"), words=(), special=_SPM, notes=_notes("response", "system")
    ),
    "gemma3": Model(
        "gemma3", "none", marks=("<start_of_turn>", "<end_of_turn>"), words=("    ", "\n\n", "<table>"),
        special={"bos_token": "<s>", "eos_token": "</s>"}, notes=_notes("response"),
    ),
}  # fmt: skip


@functools.cache
def tokenizer_of(name: str) -> Tokenizer:
    """The small tokenizer of `MODELS[name]`."""
    model = MODELS[name]
    if model.kind == "bytes":
        return byte_bpe(model.marks, model.words, rstrip=model.strips)
    return _sentencepiece(model.kind, model.marks, model.words)


def _sentencepiece(kind: str, marks: tuple[str, ...], words: tuple[str, ...]) -> Tokenizer:
    """BPE over characters with byte fallback, spaces written as U+2581."""
    spaces = normalizers.Replace(" ", "\u2581")
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = spaces
    always = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600, show_progress=False, special_tokens=[*always, *(f"<0x{i:02X}>" for i in range(256))]
    )
    texts = [message["content"] for conversation in cases.CONVERSATIONS for message in conversation]
    tokenizer.train_from_iterator(texts, trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = state["added_tokens"][: len(always)]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    written = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    if kind == "every":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), spaces])
    elif kind == "first":
        state = json.loads(tokenizer.to_str()) | {"normalizer": None}
        state["pre_tokenizer"] = {
            "type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False
        }  # fmt: skip
        tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.decoder = decoders.Sequence(written if kind == "none" else [*written, decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken(mark, normalized=False) for mark in marks])
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    return tokenizer


def write_folder(folder: Path, name: str) -> Path:
    """A Hugging Face folder of that tokenizer and template."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer_of(name).save(str(folder / "tokenizer.json"))
    tokenizer_config = {"tokenizer_class": "PreTrainedTokenizerFast", **MODELS[name].special}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    (folder / "chat_template.jinja").write_text(MODELS[name].text, encoding="utf-8")
    return folder
