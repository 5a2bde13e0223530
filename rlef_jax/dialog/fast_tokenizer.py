"""Byte-level BPE tokenizers of published models: a Hugging Face `tokenizer.json`, or the vocabulary in a GGUF file."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from rlef_jax.errors import ConfigError

# Split patterns of llama.cpp's named pre-tokenizers, from the tokenizer.json of the models that use them.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3_SPLIT = rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2_SPLIT = rf"{_WORDS}|\p{{N}}|{_REST}"
_CONTROL, _USER_DEFINED = 3, 4  # GGUF's token types
# Added tokens that mark structure rather than text: <|im_end|>, <think>, and names with an underscore such as
# <tool_call> (HTML elements have none). The second pattern (<s>, [INST]) applies only to tokens flagged as special.
_MARK = re.compile(r"<[|｜].+[|｜]>|</?think>|</?[a-z]+(_[a-z]+)+>")
_SPECIAL_MARK = re.compile(r"<\S+>|\[\S+\]")


class FastTokenizer:
    """Encodes text as ids and decodes ids.

    `vocab_size` is the number of ids; a model's embedding may have more rows, whose ids have no token.
    """

    def __init__(self, whole: Tokenizer) -> None:
        """Args: whole: a byte-level tokenizer, with its added tokens.

        Every added token is treated as special, also those that Hugging Face would match in text (Qwen's <think>).

        Raises ValueError if encoding changes white space, if text could produce a special token, or if an added token
        is ordinary text, such as a run of spaces: it would get other ids here than in the model's training.
        """
        self.whole = whole
        _refuse_ordinary_text(whole)
        self._special = {token.content: i for i, token in whole.get_added_tokens_decoder().items()}
        self.vocab_size: int = 1 + max(whole.get_vocab(with_added_tokens=True).values())
        state = json.loads(whole.to_str())
        state |= {"added_tokens": [], "post_processor": None}
        self._plain = Tokenizer.from_str(json.dumps(state))
        probe = " a\n\n\tb  'c'\n"
        if self.decode(self.encode(probe)) != probe:
            raise ValueError("not a byte-level tokenizer: it changes white space")
        for mark, i in self._special.items():
            if i in self.encode(mark):
                raise ValueError(f"text could spell the special token {mark!r}")

    def encode(self, text: str) -> list[int]:
        """Ids of `text` without special tokens: text that spells one is encoded as ordinary characters.

        A lone surrogate, which UTF-8 can't encode, becomes "?".
        """
        return self._plain.encode(text.encode("utf-8", "replace").decode("utf-8"), add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, without special tokens. Bytes that are not UTF-8 become U+FFFD."""
        return self.whole.decode([int(i) for i in ids], skip_special_tokens=True)

    def show(self, ids: Sequence[int]) -> str:
        """Like `decode`, but shows special tokens and ids without a token. For human readers only."""
        pieces: list[str] = []
        run: list[int] = []
        for i in map(int, ids):
            if self.whole.id_to_token(i) is None:
                pieces += [self.whole.decode(run, skip_special_tokens=False), f"<no token {i}>"]
                run = []
            else:
                run.append(i)
        return "".join([*pieces, self.whole.decode(run, skip_special_tokens=False)])

    def special_id(self, mark: str) -> int:
        """The id of a special token. Raises ValueError if there is none with this spelling."""
        if mark not in self._special:
            raise ValueError(f"the tokenizer has no special token {mark!r}")
        return self._special[mark]


def _refuse_ordinary_text(whole: Tokenizer) -> None:
    added = whole.get_added_tokens_decoder().values()
    ordinary = [t.content for t in added if not (_MARK.fullmatch(t.content) or (t.special and _special(t.content)))]
    if ordinary:
        more = f" and {len(ordinary) - 4} more" if len(ordinary) > 4 else ""
        raise ValueError(
            f"its added tokens {', '.join(map(repr, ordinary[:4]))}{more} are ordinary text, which rlef_jax would"
            " encode without them: such a vocabulary can't be used yet"
        )


def _special(content: str) -> bool:
    return _SPECIAL_MARK.fullmatch(content) is not None


def from_folder(folder: Path) -> FastTokenizer:
    """The tokenizer of a Hugging Face folder. Raises ConfigError if it can't be used."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(
            f"{folder}: no tokenizer.json; write one with transformers: "
            f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
        )
    try:
        return FastTokenizer(Tokenizer.from_file(str(path)))
    except Exception as error:  # the library raises Exception itself
        raise ConfigError(f"{path}: {error}") from error


def from_gguf(fields: Any, path: Path) -> FastTokenizer:
    """The tokenizer in a GGUF file's metadata. Raises ConfigError for a kind that isn't supported.

    Args: fields: `fields(key, default)` gives a value (`GGUFFile.field`). path: for errors.
    """
    kind, split = fields("tokenizer.ggml.model"), fields("tokenizer.ggml.pre")
    splits = _splits()
    if kind != "gpt2" or split not in splits:
        raise ConfigError(
            f"{path}: its tokenizer is {kind}/{split}; supported are gpt2/ with {', '.join(splits)}: "
            "set config.model.tokenizer to a folder with tokenizer.json"
        )
    tokens, types = fields("tokenizer.ggml.tokens"), fields("tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in fields("tokenizer.ggml.merges")]
    bpe = models.BPE({token: i for i, token in enumerate(tokens)}, merges, ignore_merges=split == "llama-bpe")
    whole = Tokenizer(bpe)
    whole.pre_tokenizer, whole.normalizer = splits[split]
    whole.decoder = decoders.ByteLevel()
    whole.add_special_tokens([AddedToken(t, normalized=False) for t, k in zip(tokens, types) if k == _CONTROL])
    whole.add_tokens([AddedToken(t, normalized=False) for t, k in zip(tokens, types) if k == _USER_DEFINED])
    try:
        return FastTokenizer(whole)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


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
