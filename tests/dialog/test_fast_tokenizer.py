"""Tokenizers of published models' kinds: lossless, and no text becomes a special token."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models

from rlef_jax.dialog.chat import Mark
from rlef_jax.dialog.fast_tokenizer import FastTokenizer
from rlef_jax.dialog.load import load_tokenizer
from rlef_jax.errors import ConfigError
from tests.helpers.byte_bpe import MARKS, WORDS, byte_bpe
from tests.helpers.chat_templates import MODELS, tokenizer_of, write_folder

KINDS = ("chatml", "r1_distill", "phi4_mini", "mistral_v3", "mistral_v3 first", "gemma3")
TOKENIZERS = {name: FastTokenizer(tokenizer_of(name)) for name in KINDS}
TOKENIZER = TOKENIZERS["chatml"]
FRAGMENTS = st.sampled_from(
    [*MARKS, *WORDS, "<s>", "</s>", "[INST]", "<start_of_turn>", "<｜User｜>", "<|user|>", "\ufdd0\ufdd1", "<0x41>",
     " ", "    ", "\n\n", "12", "é", "Ġ", "\x00", "print("]
)  # fmt: skip
TEXTS = st.lists(st.one_of(FRAGMENTS, st.text(st.characters(exclude_categories=["Cs"]), max_size=8))).map("".join)


@given(name=st.sampled_from(KINDS), text=TEXTS)
def test_lossless_and_without_special_tokens(name, text):
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text)
    spaced = MODELS[name].kind == "every"  # older SentencePiece vocabularies put a space in front of every text
    if MODELS[name].kind == "bytes":
        assert tokenizer.decode(ids) == text
    elif not any(c in text for c in "\u2581\ufdd0"):  # the first of them is how they write a space
        assert tokenizer.decode(ids) == " " * (spaced and bool(text)) + text
    assert not set(tokenizer.marks.values()) & set(ids)
    assert not set(tokenizer.marks.values()) & set(tokenizer.encode(text, opening=True))


@given(name=st.sampled_from(KINDS), parts=st.lists(TEXTS, min_size=2, max_size=4), opening=st.booleans())
def test_pieces_are_encoded_as_the_whole_that_they_make(name, parts, opening):
    """Wherever texts spell no special token, the model's own tokenizer makes the same ids of the joined text."""
    tokenizer, mark = TOKENIZERS[name], list(TOKENIZERS[name].marks)[-1]
    spelled = [*tokenizer.marks, "<s>", "</s>"]
    for text in parts:
        if any(m in text for m in spelled) or "\ufdd0" in text or not text:
            return
    pieces = [piece for text in parts for piece in (Mark(mark), text)][not opening :]
    if not opening:
        pieces = [Mark(mark), *pieces[1:]] if isinstance(pieces[0], Mark) else [Mark(mark), *pieces]
    ids = tokenizer.encode_pieces(pieces, opening=True)
    assert ids == tokenizer.whole.encode("".join(pieces), add_special_tokens=False).ids


def test_the_first_text_of_a_sequence_has_the_space_that_later_ones_lack():
    tokenizer = TOKENIZERS["mistral_v3 first"]
    for text, same in (("Hello", False), ("\nx", False), (" Hello", True)):
        assert tokenizer.encode(text, opening=True) == tokenizer.whole.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text) == tokenizer.whole.encode("[/INST]" + text, add_special_tokens=False).ids[1:]
        assert (tokenizer.encode(text) == tokenizer.encode(text, opening=True)) is same


def test_special_tokens_take_white_space_away_where_the_vocabulary_says_so():
    tokenizer = TOKENIZERS["phi4_mini"]
    ids = tokenizer.encode_pieces([Mark("<|user|>"), "  \n hi ", Mark("<|end|>")])
    assert tokenizer.show(ids) == "<|user|>hi <|end|>"
    assert ids == tokenizer.whole.encode("<|user|>  \n hi <|end|>").ids


@pytest.mark.parametrize("text", ["    ", "\t\t", "\n\n", "def ", "hello", "<b>", "==="])
def test_added_tokens_that_are_ordinary_text_are_found_in_text(text):
    backend = byte_bpe()
    backend.add_tokens([AddedToken(text, normalized=False)])
    tokenizer = FastTokenizer(backend)
    program = f"x{text}y\n    for i in z:{text}{text}print('<|im_end|>')"
    plain = program.replace("<|im_end|>", "")
    assert tokenizer.encode(plain) == backend.encode(plain).ids
    assert backend.token_to_id(text) in tokenizer.encode(program)
    assert tokenizer.decode(tokenizer.encode(program)) == program
    with pytest.raises(ValueError, match="no special token"):
        tokenizer.special_id(text)


@pytest.mark.parametrize(
    "mark", ["<tool_call>", "</tool_response>", "<|fim_prefix|>", "<｜fim▁hole｜>", "</think>", "[|user|]", "[/INST]"]
)
def test_marks_are_special_where_their_flag_says_otherwise(mark):
    backend = byte_bpe()
    backend.add_tokens([AddedToken(mark, normalized=False)])
    assert FastTokenizer(backend).special_id(mark) not in FastTokenizer(backend).encode(mark)


def test_shown_and_decoded():
    ids = [*TOKENIZER.encode("é<|eot_id|>"), TOKENIZER.special_id("<|eot_id|>"), TOKENIZER.vocab_size + 3]
    assert TOKENIZER.decode(ids) == "é<|eot_id|>"
    assert TOKENIZER.show(ids) == f"é<|eot_id|><|eot_id|><no token {TOKENIZER.vocab_size + 3}>"
    assert TOKENIZER.decode(TOKENIZER.encode("a\ud800b")) == "a?b"
    thought = [TOKENIZER.special_id("<think>"), *TOKENIZER.encode("well"), TOKENIZER.special_id("</think>")]
    assert TOKENIZER.decode(thought) == "<think>well</think>"  # not flagged as special: part of a response's text


def test_a_folder_is_read_as_transformers_reads_it(tmp_path):
    folder = write_folder(tmp_path, "gemma3")
    assert load_tokenizer(str(folder)).encode("    x\n\n") == TOKENIZERS["gemma3"].encode("    x\n\n")
    assert load_tokenizer(str(folder / "tokenizer.json")).vocab_size == TOKENIZERS["gemma3"].vocab_size


def test_a_length_that_the_file_cuts_or_fills_texts_to_is_passed_over():
    backend = byte_bpe()
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    assert FastTokenizer(backend).encode("def f(x): pass") == TOKENIZER.encode("def f(x): pass")


def test_tokenizers_that_lose_text_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"its tokenizer can't be read by transformers: ."):
        load_tokenizer(str(tmp_path))
    state = json.loads(byte_bpe().to_str())
    state["normalizer"] = {"type": "Strip", "strip_left": True, "strip_right": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(ConfigError, match=r"its tokenizer changes text: .* comes back as"):
        load_tokenizer(str(tmp_path))
    state["normalizer"] = {"type": "Lowercase"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(ConfigError, match=r"its tokenizer changes text: .* comes back as"):
        load_tokenizer(str(tmp_path))
    backend = Tokenizer(models.WordLevel({"a": 0}, unk_token="missing"))
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match="its tokenizer can't encode .*: WordLevel error"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="its tokenizer can't be read by transformers: ."):
        load_tokenizer(str(tmp_path))
