"""The vocabulary in a GGUF file is the folder's tokenizer that it was made from, or is refused in one line."""

from __future__ import annotations

import json

import pytest

from rlef_jax.dialog.fast_tokenizer import FastTokenizer, read_folder
from rlef_jax.dialog.gguf_vocabulary import from_gguf
from rlef_jax.errors import ConfigError
from tests.helpers.byte_bpe import MARKS, SPLIT, WORDS, byte_bpe
from tests.parity import cases

STATE = json.loads(byte_bpe().to_str())


def metadata(state, vocabulary, split="llama-bpe"):
    """What llama.cpp's converter writes of a tokenizer.json."""
    tokens = sorted(vocabulary, key=vocabulary.get)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": split,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if t in MARKS else 4 if t in WORDS else 1 for t in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in state["model"]["merges"]],
    }


@pytest.mark.parametrize("split, name", [(SPLIT, "llama-bpe"), (SPLIT.replace(r"\p{N}{1,3}", r"\p{N}"), "qwen2")])
def test_a_gguf_files_vocabulary_is_the_folders(split, name, tmp_path):
    state = json.loads(json.dumps(STATE))
    state["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = split
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    folder = FastTokenizer(read_folder(tmp_path).backend_tokenizer)
    ours = from_gguf(metadata(state, folder.whole.get_vocab(), name).get, tmp_path)
    for text in ("I'll take 1234 of\n\n   them, 'ok'\t?", *MARKS, *(m["content"] for m in cases.CONVERSATIONS[3])):
        assert ours.encode(text) == folder.encode(text)
        assert ours.whole.encode(text).ids == folder.whole.encode(text).ids


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model": "llama", "pre": "default"}, "is llama/default; supported are gpt2/ with smollm, llama-bpe, qwen2"),
        ({"pre": "default"}, "is gpt2/default; supported are gpt2/ with smollm, llama-bpe, qwen2"),
        ({"pre": None}, "is gpt2/None; supported are gpt2/"),
        ({"pre": "deepseek-r1-qwen"}, "is gpt2/deepseek-r1-qwen; supported are gpt2/"),
        ({"token_type": None}, r"gpt2/llama-bpe tokenizer lacks tokenizer\.ggml\.token_type"),
        ({"merges": None}, r"gpt2/llama-bpe tokenizer lacks tokenizer\.ggml\.merges"),
        ({"tokens": [], "merges": []}, r"tokenizer lacks tokenizer\.ggml\.tokens, tokenizer\.ggml\.merges"),
        ({"token_type": [1, 1]}, r"has \d+ tokens and 2 token types"),
        ({"merges": ["a b c"]}, "has the merge 'a b c', which is no pair of tokens"),
        ({"merges": ["a"]}, "has the merge 'a', which is no pair of tokens"),
        ({"merges": ["a \u1234"]}, "has the merge 'a \u1234', but no token '\u1234'"),
        ({"merges": ["~ ~"]}, "has the merge '~ ~', but no token '~~'"),
    ],
)
def test_a_vocabulary_that_cannot_be_used_is_refused_in_one_line(changes, message, tmp_path):
    fields = metadata(STATE, byte_bpe().get_vocab()) | {f"tokenizer.ggml.{k}": v for k, v in changes.items()}
    with pytest.raises(ConfigError, match=message) as caught:
        from_gguf(fields.get, tmp_path / "model.gguf")
    line = str(caught.value)
    assert line.startswith(f"{tmp_path / 'model.gguf'}: ") and "\n" not in line
    assert line.endswith("set config.model.tokenizer to a folder with tokenizer.json")
