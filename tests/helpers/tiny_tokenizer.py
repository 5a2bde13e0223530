"""A small real SentencePiece tokenizer, trained in some 20 ms as the package's own is."""

from __future__ import annotations

import io
from collections.abc import Sequence

import sentencepiece

from rlef_jax.dialog.prompts import FORMAT_SENTENCE, problem_prompt
from rlef_jax.dialog.tokenizer import CONTROL_SYMBOLS, Tokenizer

PHRASES = ("\n", "Give▁it▁another▁try.\n", FORMAT_SENTENCE.replace(" ", "▁"), "```python\n", "\n```", "failed:\n")
SENTENCES = [
    problem_prompt("Print the sum of the numbers of the list."),
    "Your code failed the following tests:\n\n- input `1 2` failed:\nExpected output `3` but got `-1`",
    "print(sum(map(int, input().split())))",
    'Traceback (most recent call last):\n  File "solution.py", line 1, in <module>',
]


def tokenizer_model(
    control_symbols: Sequence[str] = CONTROL_SYMBOLS, user_symbols: Sequence[str] = (), vocab_size: int = 400
) -> bytes:
    """The bytes of a `.model` file."""
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=writer,
        vocab_size=vocab_size,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        control_symbols=list(control_symbols),
        user_defined_symbols=[*PHRASES, *user_symbols],
        unk_id=0,
        bos_id=1,
        eos_id=-1,
        pad_id=-1,
        minloglevel=2,
    )
    return writer.getvalue()


def tiny_tokenizer() -> Tokenizer:
    """A tokenizer of about 400 pieces."""
    return Tokenizer(tokenizer_model())
