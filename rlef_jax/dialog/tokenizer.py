"""A lossless SentencePiece tokenizer. No text can produce its special tokens."""

from __future__ import annotations

import os
from collections.abc import Sequence

import sentencepiece

from rlef_jax.dialog.chat import Mark
from rlef_jax.errors import ConfigError

BOS = "<s>"
SYSTEM, USER, ASSISTANT, END = "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
CONTROL_SYMBOLS = (SYSTEM, USER, ASSISTANT, END)

# SentencePiece writes a space as this character, so the character itself would come back as a space.
_SPACE_MARK = "\u2581"


class Tokenizer:
    """Encodes text as ids and decodes ids.

    The model must have been trained with byte fallback, identity normalization, no dummy prefix and no removal of
    white space: then `decode(encode(text)) == text` for every text that UTF-8 can encode.

    Attributes:
      vocab_size: number of ids.
      bos_id, system_id, user_id, assistant_id, end_id: the special tokens.
    """

    def __init__(self, model: bytes) -> None:
        """Args: model: bytes of a `.model` file. Raises ValueError if special tokens or byte fallback are missing."""
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.vocab_size: int = self._processor.get_piece_size()
        self.bos_id = self.special_id(BOS)
        self.system_id, self.user_id, self.assistant_id, self.end_id = map(self.special_id, CONTROL_SYMBOLS)
        self._space_mark_ids = [self._piece_id(f"<0x{byte:02X}>") for byte in _SPACE_MARK.encode()]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Reads a SentencePiece `.model` file."""
        with open(path, "rb") as file:
            return cls(file.read())

    def encode(self, text: str) -> list[int]:
        """Ids of `text` without special tokens: text that spells one is encoded as ordinary characters.

        A lone surrogate, which UTF-8 can't encode, becomes "?".
        """
        text = text.encode("utf-8", "replace").decode("utf-8")
        first, *rest = (self._processor.encode(part) for part in text.split(_SPACE_MARK))
        for part in rest:
            first += self._space_mark_ids + part
        return first

    def encode_pieces(self, pieces: Sequence[str], *, opening: bool = False) -> list[int]:
        """Ids of special tokens (`Mark`) and texts. Raises ValueError for a mark that isn't there."""
        del opening
        return [
            i for piece in pieces for i in ([self.special_id(piece)] if isinstance(piece, Mark) else self.encode(piece))
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, without special tokens. Bytes that are not UTF-8 become U+FFFD."""
        return self._processor.decode([int(i) for i in ids])

    def show(self, ids: Sequence[int]) -> str:
        """Like `decode`, but shows special tokens. For human readers only: never encode the result.

        Raises ConfigError for an id that this vocabulary doesn't have.
        """
        if unknown := [i for i in ids if not 0 <= i < self.vocab_size]:
            raise ConfigError(f"token {unknown[0]} is not in this tokenizer's vocabulary of {self.vocab_size}")
        pieces: list[str] = []
        run: list[int] = []
        for i in map(int, ids):
            if self._processor.is_control(i):
                pieces += [self.decode(run), self._processor.id_to_piece(i)]
                run = []
            else:
                run.append(i)
        return "".join([*pieces, self.decode(run)])

    def special_id(self, mark: str) -> int:
        """The id of a special token. Raises ValueError if the model has none with this spelling."""
        i = self._piece_id(mark)
        if not self._processor.is_control(i):
            raise ValueError(f"{mark!r} must be a control symbol, or text could spell it")
        return i

    def _piece_id(self, piece: str) -> int:
        i = self._processor.piece_to_id(piece)
        if self._processor.id_to_piece(i) != piece:
            raise ValueError(f"the tokenizer model has no piece {piece!r}")
        return int(i)
