"""The byte-level BPE vocabulary in a GGUF file's metadata, as a tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from rlef_jax.dialog.fast_tokenizer import FastTokenizer
from rlef_jax.errors import ConfigError

# Split patterns of llama.cpp's named pre-tokenizers, from the tokenizer.json of the models that use them.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3_SPLIT = rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2_SPLIT = rf"{_WORDS}|\p{{N}}|{_REST}"
_CONTROL, _USER_DEFINED = 3, 4  # GGUF's token types
_ADVICE = "set config.model.tokenizer to a folder with tokenizer.json"


def from_gguf(fields: Callable[..., Any], path: Path) -> FastTokenizer:
    """The tokenizer in a GGUF file's metadata.

    Args: fields: `fields(key)` gives a value or None (`GGUFFile.field`). path: for errors.

    Raises ConfigError for a kind that isn't supported, and for a vocabulary that lacks something or contradicts itself.
    """
    kind, split = fields("tokenizer.ggml.model"), fields("tokenizer.ggml.pre")
    splits = _splits()
    if kind != "gpt2" or split not in splits:
        raise ConfigError(
            f"{path}: its tokenizer is {kind}/{split}; supported are gpt2/ with {', '.join(splits)}: {_ADVICE}"
        )
    lists = {name: fields(f"tokenizer.ggml.{name}") for name in ("tokens", "token_type", "merges")}
    if lacking := [f"tokenizer.ggml.{name}" for name, entries in lists.items() if not entries]:
        raise ConfigError(f"{path}: its {kind}/{split} tokenizer lacks {', '.join(lacking)}: {_ADVICE}")
    tokens, types = lists["tokens"], lists["token_type"]
    if len(types) != len(tokens):
        raise ConfigError(
            f"{path}: its {kind}/{split} tokenizer has {len(tokens)} tokens and {len(types)} token types: {_ADVICE}"
        )
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges = _merges(lists["merges"], vocabulary, f"{path}: its {kind}/{split} tokenizer")
    try:
        backend = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=split == "llama-bpe"))
        backend.pre_tokenizer, backend.normalizer = splits[split]
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens([AddedToken(t, normalized=False) for t, k in zip(tokens, types) if k == _CONTROL])
        backend.add_tokens([AddedToken(t, normalized=False) for t, k in zip(tokens, types) if k == _USER_DEFINED])
        return FastTokenizer(backend)
    except Exception as error:  # the library raises Exception itself
        raise ConfigError(f"{path}: {error}: {_ADVICE}") from error


def _merges(merges: Sequence[str], vocabulary: Mapping[str, int], source: str) -> list[tuple[str, str]]:
    """The pairs of tokens that are joined, in order. Raises ConfigError, which begins with `source`."""
    pairs: list[tuple[str, str]] = []
    for merge in merges:
        parts = merge.split(" ")
        if len(parts) != 2:
            raise ConfigError(f"{source} has the merge {merge!r}, which is no pair of tokens: {_ADVICE}")
        if unknown := [part for part in (*parts, "".join(parts)) if part not in vocabulary]:
            raise ConfigError(f"{source} has the merge {merge!r}, but no token {unknown[0]!r}: {_ADVICE}")
        pairs.append((parts[0], parts[1]))
    return pairs


def _splits() -> dict[str, tuple[Any, Any]]:
    """{llama.cpp's name: (pre-tokenizer, normalizer)}."""

    def split(pattern: str) -> Any:
        parts = [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
        return pre_tokenizers.Sequence(parts)

    return {
        "smollm": (pre_tokenizers.ByteLevel(add_prefix_space=False), None),
        "llama-bpe": (split(_LLAMA3_SPLIT), None),
        "qwen2": (split(_QWEN2_SPLIT), normalizers.NFC()),
    }
