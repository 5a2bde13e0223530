"""Tokenizers of published models, as `transformers` reads them from a folder."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from rlef_jax.dialog.chat import Mark
from rlef_jax.errors import ConfigError
from rlef_jax.hugging_face import transformers

# Added tokens that mark structure though they aren't flagged as special: <think>, <|fim_prefix|>, [|user|], [INST], and
# names with an underscore such as <tool_call> (HTML elements have none). Others are ordinary text, such as runs of
# spaces.
_MARK = re.compile(r"<[|｜].+[|｜]>|\[[|].+[|]\]|\[/?[A-Z]+(_[A-Z]+)*\]|</?think>|</?[a-z]+(_[a-z]+)+>")
# Stands in front of a text that isn't the first: many tokenizers put a space before what is. Noncharacters, so that no
# text has it; one that does is encoded in parts.
_ANCHOR = "\ufdd0\ufdd1"
_PROBES = (" A\n\n\tb  'c'\n", "  x = 1", "naïve — 東京 🙂\x00", "")


class FastTokenizer:
    """Encodes text as ids and decodes ids.

    Attributes:
      whole: the tokenizer as its model's training used it.
      marks: {spelling: id} of the special tokens. No text becomes one of them.
      vocab_size: the number of ids; a model's embedding may have more rows, whose ids have no token.
    """

    def __init__(self, whole: Tokenizer) -> None:
        """Args: whole: a tokenizer, with its added tokens.

        Added tokens that mark structure (Qwen's <think>) are treated as special; what is ordinary text (a run of
        spaces) is found in texts, as in the model's training. Raises ValueError if encoding changes text, or if text
        could produce a special token.
        """
        self.whole = whole
        whole.no_truncation()  # settings of how its model was trained, which some files keep
        whole.no_padding()
        added = whole.get_added_tokens_decoder()
        marks = {i: token for i, token in added.items() if token.special or _MARK.fullmatch(token.content)}
        self.marks = {token.content: i for i, token in marks.items()}
        self._strips = {token.content: (token.lstrip, token.rstrip) for token in marks.values()}
        self.vocab_size: int = 1 + max(whole.get_vocab(with_added_tokens=True).values())
        state = json.loads(whole.to_str()) | {"post_processor": None}
        self._reader = _anchored(state)
        for token in state["added_tokens"]:
            token["special"] = token["content"] in self.marks
        self._plain = _anchored(state)
        self._plain.encode_special_tokens = True  # as the letters that they are spelled with
        for probe in _PROBES:
            try:
                decoded = self.decode(self.encode(probe))
            except Exception as error:  # the library raises no other kind
                raise ValueError(f"its tokenizer can't encode {probe!r}: {error}") from error
            # SentencePiece's older vocabularies put a space in front of each text.
            if decoded not in (probe, " " + probe):
                raise ValueError(f"its tokenizer changes text: {probe!r} comes back as {decoded!r}")
        for mark, i in self.marks.items():
            if i in self.encode(mark):
                raise ValueError(f"text could spell the special token {mark!r}")

    def encode(self, text: str, *, opening: bool = False) -> list[int]:
        """Ids of text; `opening`: it comes first in a sequence. Text that spells a special token is letters.

        A lone surrogate, which UTF-8 can't encode, becomes "?".
        """
        text = text.encode("utf-8", "replace").decode("utf-8")
        if _ANCHOR in text:
            first, _, rest = text.partition(_ANCHOR)
            return [*self.encode(first + _ANCHOR[0], opening=opening), *self.encode(_ANCHOR[1] + rest)]
        if opening:
            return list(self._plain.encode(text, add_special_tokens=False).ids)
        return list(self._plain.encode(_ANCHOR + text, add_special_tokens=False).ids[1:])

    def encode_pieces(self, pieces: Sequence[str], *, opening: bool = False) -> list[int]:
        """Ids of special tokens (`Mark`) and texts; `opening`: a sequence begins with them.

        Some vocabularies' special tokens take the white space beside them away. Raises ValueError for a mark that the
        tokenizer hasn't got.
        """
        ids: list[int] = []
        for number, piece in enumerate(pieces):
            if isinstance(piece, Mark):
                ids.append(self.special_id(piece))
                continue
            before, after = pieces[max(number - 1, 0)], pieces[min(number + 1, len(pieces) - 1)]
            text = str(piece)
            text = text.lstrip() if isinstance(before, Mark) and self._strips[before][1] else text
            text = text.rstrip() if isinstance(after, Mark) and self._strips[after][0] else text
            ids += self.encode(text, opening=opening and number == 0)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, without special tokens. Bytes that are not UTF-8 become U+FFFD."""
        return self._read(ids, skip_special_tokens=True)

    def show(self, ids: Sequence[int]) -> str:
        """Like `decode`, but shows special tokens and ids without a token. For human readers only."""
        pieces: list[str] = []
        run: list[int] = []
        for i in map(int, ids):
            if self.whole.id_to_token(i) is None:
                pieces += [self._read(run, skip_special_tokens=False), f"<no token {i}>"]
                run = []
            else:
                run.append(i)
        return "".join([*pieces, self._read(run, skip_special_tokens=False)])

    def special_id(self, mark: str) -> int:
        """The id of a special token. Raises ValueError if there is none with this spelling."""
        if mark not in self.marks:
            raise ValueError(f"the tokenizer has no special token {mark!r}")
        return self.marks[mark]

    def _read(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        anchor = self._reader.encode(_ANCHOR, add_special_tokens=False).ids
        ids_with_token = [*anchor, *(int(i) for i in ids if int(i) < self.vocab_size)]
        return str(self._reader.decode(ids_with_token, skip_special_tokens=skip_special_tokens)).removeprefix(_ANCHOR)


def _anchored(state: dict[str, Any]) -> Tokenizer:
    """A tokenizer of that state, with the anchor as one more token."""
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.add_tokens([AddedToken(_ANCHOR, normalized=False)])
    return tokenizer


def read_folder(folder: Path) -> Any:
    """The tokenizer of a Hugging Face folder, as `transformers` has it. Raises ConfigError if it can't be used."""
    library = transformers()
    try:
        tokenizer = library.AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever the files make the library raise
        message = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(f"{folder}: its tokenizer can't be read by transformers: {message[:300]}") from error
    if not isinstance(getattr(tokenizer, "backend_tokenizer", None), Tokenizer):
        raise ConfigError(
            f"{folder}: {type(tokenizer).__name__} is written in Python; rlef_jax needs a tokenizer.json: another"
            " revision of the model may have one"
        )
    return tokenizer
