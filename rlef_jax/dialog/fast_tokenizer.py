"""Byte-level BPE tokenizers of published models, out of a Hugging Face `tokenizer.json`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from rlef_jax.errors import ConfigError

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
