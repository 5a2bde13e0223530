"""Published models' tokenizers and chat formats: ids equal the template's wherever the template only appends."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken

from rlef_jax.dialog.chat import ChatFormat
from rlef_jax.dialog.fast_tokenizer import FastTokenizer
from rlef_jax.dialog.load import load_chat
from rlef_jax.dialog.styles import DATE, STYLES, render, style_of
from rlef_jax.errors import ConfigError
from tests.helpers.byte_bpe import MARKS, QWEN3, TEMPLATES, WORDS, byte_bpe, write_tokenizer
from tests.parity import cases

TOKENIZER = FastTokenizer(byte_bpe())
BOS = {"bos_token": "<|begin_of_text|>"}
FRAGMENTS = st.sampled_from([*MARKS, *WORDS, " ", "\n\n", "12", "é", "\u2581", "Ġ", "\x00", "print("])


def template_ids(template, messages, **variables):
    return TOKENIZER.whole.encode(render(template, messages, BOS, **variables), add_special_tokens=False).ids


def prompts(chat, messages, *, closed=True):
    """For each response, all ids before it."""
    *system, first = messages[: 1 + (messages[0]["role"] == "system")]
    ids = chat.first_prompt(first["content"], "".join(m["content"] for m in system))
    yield list(ids)
    rest = messages[len(system) + 1 :]
    for response, feedback in zip(rest[::2], rest[1::2], strict=True):
        written = chat.response(response["content"])
        ids += written if closed else written[:-1]
        ids += chat.next_prompt(feedback["content"], closed=closed)
        yield list(ids)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_is_recognised_and_its_ids_are_ours(name, tmp_path):
    chat = load_chat(str(write_tokenizer(tmp_path, TEMPLATES[name])))
    assert chat.style == STYLES[name]
    for messages in cases.CONVERSATIONS:
        system = messages[0]["role"] == "system"
        for turn, ids in enumerate(prompts(chat, messages)):
            assert ids == template_ids(TEMPLATES[name], messages[: 2 * turn + 1 + system])
        *_, cut = prompts(chat, messages, closed=False)  # a response that ended by length is closed by the next prompt
        assert cut == ids


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_response_can_start_with_given_text(name):
    chat, start = ChatFormat(TOKENIZER, STYLES[name]), "\ndef f(x):\n    "
    rendered = render(TEMPLATES[name], cases.conversation("Hi", "no", "Again"), BOS)
    ids = chat.first_prompt("Hi") + chat.response("no") + chat.next_prompt("Again", closed=True, start=start)
    assert ids == TOKENIZER.whole.encode(rendered + start, add_special_tokens=False).ids
    assert chat.first_prompt("Hi", start=start)[-3:] == ids[-3:]


def test_llamas_date_is_pinned():
    chat = ChatFormat(TOKENIZER, STYLES["llama31"])
    assert f"Today Date: {DATE}\n\nBe brief.<|eot_id|>" in TOKENIZER.show(chat.first_prompt("Hi", " Be brief. "))
    assert f"Today Date: {DATE}\n\n<|eot_id|>" in TOKENIZER.show(chat.first_prompt("Hi"))


def test_qwen_3_without_thinking():
    assert style_of(QWEN3, BOS, "here") == STYLES["chatml"]
    chat = ChatFormat(TOKENIZER, STYLES["qwen3_direct"])
    assert chat.first_prompt("Hi") == template_ids(QWEN3, cases.conversation("Hi"), enable_thinking=False)


def test_where_templates_do_not_append_ours_does():
    """Qwen 3 drops earlier thinking and Llama trims responses; we keep sampled responses unchanged."""
    messages = cases.conversation("Hi", "<think>\nwell\n</think>\n\nyes", "Again")
    sampled = [TOKENIZER.special_id("<think>"), *TOKENIZER.encode("\nwell\n"), TOKENIZER.special_id("</think>")]
    chat = ChatFormat(TOKENIZER, STYLES["chatml"])
    ids = chat.first_prompt("Hi") + sampled + TOKENIZER.encode("\n\nyes") + [chat.stop_ids[0]]
    assert template_ids(QWEN3, messages)[: len(ids)] != ids
    assert ids + chat.next_prompt("Again", closed=True) == template_ids(TEMPLATES["chatml"], messages)
    llama = ChatFormat(TOKENIZER, STYLES["llama3"])
    spaced = llama.first_prompt("Hi") + TOKENIZER.encode("yes\n\n") + [llama.stop_ids[0]]
    rendered = template_ids(TEMPLATES["llama3"], cases.conversation("Hi", "yes\n\n", "Again"))
    assert rendered[: len(spaced)] != spaced
    assert rendered == llama.first_prompt("Hi") + llama.response("yes\n\n") + llama.next_prompt("Again", closed=True)


@given(st.lists(st.one_of(FRAGMENTS, st.text(st.characters(exclude_categories=["Cs"]), max_size=8))).map("".join))
def test_lossless_and_without_special_tokens(text):
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert not {TOKENIZER.special_id(mark) for mark in (*MARKS, *WORDS)} & set(ids)


@pytest.mark.parametrize("name", STYLES)
def test_text_cannot_close_its_message(name):
    if name == "tiny":
        return
    chat = ChatFormat(TOKENIZER, STYLES[name])
    attack = "x" + "".join((*MARKS, *WORDS)) + "y"
    special = {TOKENIZER.special_id(mark) for mark in (*MARKS, *WORDS)}
    for harmless, hostile in (
        (chat.first_prompt("xy", "xy", start="xy"), chat.first_prompt(attack, attack, start=attack)),
        (chat.next_prompt("xy", closed=False), chat.next_prompt(attack, closed=False)),
        (chat.response("xy"), chat.response(attack)),
    ):
        assert [i for i in hostile if i in special] == [i for i in harmless if i in special]


def test_shown_decoded_and_stopped():
    chat = ChatFormat(TOKENIZER, STYLES["llama3"])
    assert [TOKENIZER.show([i]) for i in chat.stop_ids] == ["<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"]
    ids = [*chat.response("é"), TOKENIZER.vocab_size + 3]
    assert chat.response_text(ids) == "é"
    assert TOKENIZER.show(ids) == f"é<|eot_id|><no token {TOKENIZER.vocab_size + 3}>"
    assert TOKENIZER.decode(TOKENIZER.encode("a\ud800b")) == "a?b"


@pytest.mark.parametrize(
    "template, style, message",
    [
        (None, "", r"no chat template: set config\.model\.chat to one of tiny, llama3"),
        ("{{ messages[0].content }}", "", r"none that rlef_jax knows: set config\.model\.chat"),
        ("{{ raise_exception('no') }}", "", "cannot be rendered: no"),
        ("{% if %}", "", "cannot be rendered"),
        (None, "llama2", r"config\.model\.chat: 'llama2' is not one of tiny, llama3"),
        (None, "tiny", r"config\.model\.chat: .*no special token '<s>'"),
    ],
)
def test_what_cannot_be_used_is_named(template, style, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        load_chat(str(write_tokenizer(tmp_path, template)), style)


def test_tokenizers_that_lose_text_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no tokenizer\.json; write one with transformers"):
        load_chat(str(tmp_path), "llama3")
    state = json.loads(byte_bpe().to_str())
    state["normalizer"] = {"type": "Strip", "strip_left": True, "strip_right": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(ConfigError, match="it changes white space"):
        load_chat(str(tmp_path), "llama3")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        load_chat(str(tmp_path), "llama3")


@pytest.mark.parametrize("text", ["    ", "\t\t", "\n\n", "def ", "hello", "<b>", "==="])
def test_a_vocabulary_whose_added_tokens_are_ordinary_text_is_refused_by_name(text):
    whole = byte_bpe()
    whole.add_tokens([AddedToken(text, normalized=False)])
    with pytest.raises(ValueError, match=f"{re.escape(repr(text))} are ordinary text"):
        FastTokenizer(whole)


@pytest.mark.parametrize("mark", ["<tool_call>", "</tool_response>", "<|fim_prefix|>", "<｜fim▁hole｜>", "</think>"])
def test_marks_that_text_does_not_hold_are_no_hindrance(mark):
    whole = byte_bpe()
    whole.add_tokens([AddedToken(mark, normalized=False)])
    assert FastTokenizer(whole).special_id(mark) not in FastTokenizer(whole).encode(mark)


def test_ids_that_a_models_files_name_end_a_response(tmp_path):
    whole = byte_bpe()
    whole.add_special_tokens([AddedToken("<|turn_end|>", normalized=False)])
    folder = write_tokenizer(tmp_path / "model", TEMPLATES["chatml"])
    whole.save(str(folder / "tokenizer.json"))
    ours = load_chat(str(folder)).stop_ids
    end = whole.token_to_id("<|turn_end|>")
    for named, more in (([end, ours[0]], (end,)), (end, (end,)), (None, ())):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": named}))
        assert load_chat(str(folder)).stop_ids == (*ours, *more)
    for named in ([end, 10**6], "<|turn_end|>"):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": named}))
        with pytest.raises(ConfigError, match="generation_config.json: .* is no token of the tokenizer"):
            load_chat(str(folder))
