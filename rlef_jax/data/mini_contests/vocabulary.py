"""The tiny model's tokenizer: SentencePiece trained on MiniContests, with its frequent phrases as single symbols.

A phrase is the text between parts that vary (digits, data, quoted constants). With several hundred phrases as symbols,
a dialogue of three turns fits in 256 tokens. The varying parts are spelled in characters, so that a separator is the
same token in an expected output and in a program.
"""

from __future__ import annotations

import collections
import io
import re
from collections.abc import Iterable

import sentencepiece

from rlef_jax.data.mini_contests.readings import QUESTIONS
from rlef_jax.dialog.prompts import FORMAT_SENTENCE
from rlef_jax.dialog.tokenizer import BOS, CONTROL_SYMBOLS

_SPACE_MARK = "\u2581"

# Boundaries of phrases: around digits and line ends, inside quotes and backticks, between a statement's clauses.
_BOUNDARY = re.compile(
    r"""(?<=\d)|(?=\d)|(?<=\n)(?!\n)|(?<=[(\s,f]")|(?="[\s.),:\]])|(?<=`)(?!`|python)|(?<!`)(?=`[^`])"""
    r"""|(?<=\sthat\s)|(?<=,\s)|(?=\sand\s)|(?=\sfor\sx\sin)|(?<=\sif\s)|(?<=\{l\})|(?=\{r\})|(?=\swith\s)|(?=\sor\s)"""
)


def _quoted(kind: str) -> list[str]:
    """The quoted constants in the programs of an output kind: the words and formats in which its readings differ."""
    return [word for q in QUESTIONS[kind] for r in q.readings for word in re.findall(r'"([^"]+)"', "".join(r.code))]


WRAPPERS = (
    "Provide a Python solution for the following competitive programming question: ",
    f".\n\n{FORMAT_SENTENCE}",
    f"Give it another try.\n{FORMAT_SENTENCE}",
    f"\n\nGive it another try.\n{FORMAT_SENTENCE}",
    "Your code failed the following tests:\n\n- input `",
    "` failed:\nExpected output `",
    "` failed:\n",
    "` but got `",
    "\n`\n...[1 failed tests cut]\n\n",
    "\n...[1 failed tests cut]\n\n",
    "...[2 failed tests cut]\n\n",
    "Example\n\nInput\n\n",
    "\n\nOutput\n\n",
    "Output\n\nPrint the resulting values",
    "Output\n\nPrint the result",
    " Execution took too long.",
    " Out of memory.",
    "Your response has no code block.\n\n",
    "Your code does not parse:\n\n",
    "Traceback (most recent call last):\n",
    '  File "solution.py", line ',
    "```python\n",
    "\n```",
    *(word for question in ("maybe", "bool") for word in _quoted(question) if len(word) > 1 and word.isalpha()),
    *(form for form in _quoted("runs") if "{" in form),
)


def phrases(texts: Iterable[str], count: int, least: int = 3) -> list[str]:
    """The `count` phrases of `texts` (at least `least` characters each) that save the most characters as symbols."""
    counts: collections.Counter[str] = collections.Counter()
    for text in texts:
        for part in _BOUNDARY.split(text):
            if len(part) >= least and not part.isdigit():
                counts[part] += 1
    ranked = sorted(counts, key=lambda p: (-counts[p] * (len(p) - 1), p))
    # Input words use only the letters a, b, c: text without other letters is data, which is to be spelled.
    return [p for p in ranked if counts[p] > 3 and re.search(r"[d-zA-Z=\[\]{}]", p)][:count]


def train_tokenizer(texts: list[str], vocab_size: int, phrase_count: int) -> bytes:
    """The bytes of a lossless SentencePiece model (byte fallback, nothing normalised) with phrases as symbols."""
    symbols = list(dict.fromkeys([*WRAPPERS, *phrases(texts, phrase_count), "\n"]))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        control_symbols=list(CONTROL_SYMBOLS),
        user_defined_symbols=[s.replace(" ", _SPACE_MARK) for s in symbols],
        bos_piece=BOS,
        eos_id=-1,
        pad_id=-1,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=True,
        character_coverage=1.0,
        max_sentence_length=1 << 16,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()
