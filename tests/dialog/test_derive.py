"""Chat formats out of templates: their ids where a template is append-only, the documented policy's elsewhere."""

from __future__ import annotations

import functools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlef_jax.dialog.derive import NOTES, derive, note_lines
from rlef_jax.dialog.load import load_chat
from rlef_jax.dialog.template import Template, user_says
from rlef_jax.errors import ConfigError
from tests.helpers.chat_templates import MODELS, write_folder
from tests.parity import cases

FOLDER: list = []


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    FOLDER[:] = [tmp_path_factory.mktemp("models")]
    chat_of.cache_clear()


@functools.cache
def chat_of(name):
    options = dict(MODELS[name].options)
    return load_chat(str(write_folder(FOLDER[0] / name, name)), "", json.dumps(options) if options else "")


def whole_ids(chat, rendered):
    return chat.tokenizer.whole.encode(rendered, add_special_tokens=False).ids


def dialogue(chat, texts, system=""):
    """For each response: (all ids before it, those appended for it)."""
    ids = chat.first_prompt(texts[0], system)
    yield list(ids), list(ids)
    for response, feedback in zip(texts[1::2], texts[2::2], strict=True):
        more = chat.next_prompt(feedback, closed=True)
        ids = [*ids, *chat.response(response), *more]
        yield list(ids), more


@pytest.mark.parametrize("name", MODELS)
def test_ids_of_three_turns(name):
    model, chat = MODELS[name], chat_of(name)
    assert set(chat.notes) == model.notes
    template = model.rendered()
    for messages in cases.CONVERSATIONS:
        system = messages[0]["content"] if messages[0]["role"] == "system" else ""
        if system and chat.style.first_with_system is None:
            continue
        texts = [m["content"] for m in messages[bool(system) :]]
        for turn, (ids, appended) in enumerate(dialogue(chat, texts, system)):
            moved = "system" in model.notes and turn  # the template would move the system message
            rendered = template.render(user_says(*texts[: 2 * turn + 1], system="" if moved else system))
            expected = whole_ids(chat, rendered)
            assert expected[-len(appended) :] == appended
            if not {"opening", "insertion", "system"} & model.notes:
                assert expected == ids
        closed = [*chat.first_prompt(texts[0], system), *chat.response("x"), *chat.next_prompt("y", closed=True)]
        cut = [
            *chat.first_prompt(texts[0], system),
            *chat.tokenizer.encode(chat.style.before + "x"),
            *chat.next_prompt("y", closed=False),
        ]
        assert closed == cut  # a response that ended by length is closed by the next prompt


TEXTS = st.lists(st.one_of(st.sampled_from(["a", " ", "\n", "é", "12", "```", "{{"]), st.text("xyz\n ", max_size=6)))


@given(name=st.sampled_from(list(MODELS)), texts=st.lists(TEXTS.map("".join), min_size=5, max_size=5))
def test_random_dialogues_extend_and_say_what_the_template_says(name, texts):
    model, chat = MODELS[name], chat_of(name)
    before: list[int] = []
    for turn, (ids, appended) in enumerate(dialogue(chat, texts)):
        assert ids[: len(before)] == before
        before = ids
        rendered = model.rendered().render(user_says(*texts[: 2 * turn + 1]))
        assert whole_ids(chat, rendered)[-len(appended) :] == appended


@pytest.mark.parametrize("name", MODELS)
def test_text_cannot_close_its_message(name):
    chat = chat_of(name)
    special = set(chat.tokenizer.marks.values())
    attack = "x" + "".join(chat.tokenizer.marks) + " ".join(chat.tokenizer.marks) + "y"
    system = "Be brief." if chat.style.first_with_system is not None else ""

    def marks(ids):
        return [i for i in ids if i in special]

    assert marks(chat.first_prompt(attack, system, start=attack)) == marks(chat.first_prompt("xy", system, start="xy"))
    for closed in (True, False):
        assert marks(chat.next_prompt(attack, closed=closed)) == marks(chat.next_prompt("xy", closed=closed))
    assert marks(chat.response(attack)) == marks(chat.response("xy")) == [chat.stop_ids[0]]
    assert chat.user_turn("xy") == chat.first_prompt("xy")[-len(chat.user_turn("xy")) :]


@pytest.mark.parametrize("name", MODELS)
def test_a_response_can_start_with_given_text(name):
    chat, start = chat_of(name), "def f(x):\n    "
    rendered = MODELS[name].rendered().render(user_says("Hi"))
    assert chat.first_prompt("Hi", start=start) == whole_ids(chat, rendered + start)
    length = len(chat.next_prompt("Hi", closed=True, start=start))
    both = MODELS[name].rendered().render(user_says("a", "b", "Hi")) + start
    assert chat.next_prompt("Hi", closed=True, start=start) == whole_ids(chat, both)[-length:]


@pytest.mark.parametrize("name", MODELS)
def test_dialogues_side_by_side(name):
    chat, empty = chat_of(name), {"role": "assistant", "content": ""}
    if chat.style.another is None:
        assert name.startswith(("mistral", "gemma", "llama2"))  # their templates demand that roles alternate
        with pytest.raises(ConfigError, match="--few-shot: .* refuses two assistant messages in a row"):
            chat.another_prompt("Again")
        return
    rendered = MODELS[name].rendered().render([*user_says("Hi", "yes"), empty, *user_says("Again")])
    appended = chat.another_prompt("Again")
    assert whole_ids(chat, rendered)[-len(appended) :] == appended


def test_where_a_template_does_not_append_what_was_sampled_stays():
    """What each of `NOTES` means: ids of the second prompt, beside the rendering that would have other ones."""

    def shown(name, response, user="b", system=""):
        chat = chat_of(name)
        ids = [*chat.first_prompt("a", system), *chat.tokenizer.encode(response), chat.stop_ids[0]]
        again = MODELS[name].rendered().render(user_says("a", response, user, system=system))
        return chat.tokenizer.show([*ids, *chat.next_prompt(user, closed=True)]), again

    end = "<|im_start|>assistant\n"
    start, middle = "<|im_start|>user\na<|im_end|>\n" + end, "<|im_end|>\n<|im_start|>user\nb<|im_end|>\n"
    thought = "<think>\nt\n</think>\n\nc"
    assert shown("qwen3", thought) == (start + thought + middle + end, start + "c" + middle + end)
    opened = "<think>\n"
    assert shown("qwen3_thinking", "t\n</think>\n\nc") == (
        start + opened + "t\n</think>\n\nc" + middle + end + opened, start + "c" + middle + end + opened,
    )  # fmt: skip
    assert shown("smollm3", "\nc")[0].endswith(end + "\nc" + middle + end)
    assert shown("smollm3", "\nc")[1].endswith(end + "c" + middle + end)
    ours, again = shown("mistral_v3 first", " c", system="s")
    assert ours == "<s>[INST] s\n\na[/INST] c</s>[INST] b[/INST]"
    assert again == "<s>[INST] a[/INST] c</s>[INST] s\n\nb[/INST]"
    assert len(note_lines(tuple(NOTES))) == len(NOTES)


INSERTS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}{{ 'X' }}{% endif %}"
    "{{ m.content + '<|im_end|>\\n' }}{% endfor %}{{ '<|im_start|>assistant\\n' }}"
)
LAST_IS_MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + ('last ' if loop.last else '') + m.role + '\\n' + m.content"
    " + '<|im_end|>\\n' }}{% endfor %}{{ '<|im_start|>assistant\\n' }}"
)
MARKS = ("<|im_start|>", "<|im_end|>")


@pytest.mark.parametrize("text, note", [(INSERTS, "insertion"), (LAST_IS_MARKED, "history")])
def test_rare_templates(text, note):
    style, notes = derive(Template("here", text), MARKS)
    assert notes == (note,)
    filled = "".join([*style.fill(style.first, user="a"), "r", style.end, *style.fill(style.next, user="b")])
    assert filled.endswith(Template("here", text).render(user_says("a", "r", "b"))[-40:])
    assert "X" not in filled


MESSAGE = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + CONTENT + '<|im_end|>\\n' }}{% endfor %}"
PLAIN = MESSAGE.replace("CONTENT", "m.content")
OPENING = "{{ '<|im_start|>assistant\\n' }}"


@pytest.mark.parametrize(
    "text, rule",
    [
        ("{% if %}", "Expected an expression"),
        ("{{ raise_exception('no tools') }}", "no tools"),
        ("{{ messages[0].content }}", "it writes a response 0 times, not once"),
        (MESSAGE.replace("CONTENT", "m.content + m.content") + OPENING, "the user message 2 times, not once"),
        (MESSAGE.replace("CONTENT", "'hi'") + OPENING, "the user message 0 times, not once"),
        (MESSAGE.replace("CONTENT", "m.content | replace(' ', '_')") + OPENING, "changes the text of user messages"),
        (PLAIN.replace("<|im_end|>", "END") + OPENING, "no special token follows a response"),
        (PLAIN + "{{ 'bot' if messages | length < 2 else 'you' }}", "another text once"),
        (PLAIN, "earlier responses begin with <|im_start|>, and it doesn't open a new one so"),
        (PLAIN.replace("m.role", "m.role + ('!' if loop.index0 == 4 else '')") + OPENING, "every turn"),
        (
            PLAIN + "{{ 's' if messages[0].role == 'system' }}" + OPENING,
            "with a system message another text stands between turns",
        ),
    ],
)  # fmt: skip
def test_a_template_that_breaks_a_rule_is_refused_in_one_line(text, rule):
    with pytest.raises(ConfigError, match=rule) as error:
        derive(Template("model/x", text), MARKS)
    assert str(error.value).startswith("model/x: its chat template can't be used: ")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "content, message",
    [
        ("(m.content if m.content else raise_exception('no'))", "it can't be rendered with the response '': no"),
        ("(m.content | replace('東', 'x'))", "its first turn is another with the message 'na"),
        ("(m.content if loop.first else m.content | replace('```', ''))", "the text between turns is another"),
    ],
)
def test_texts_that_trip_a_template_are_found_when_it_is_loaded(content, message, tmp_path):
    folder = write_folder(tmp_path, "chatml")
    (folder / "chat_template.jinja").write_text(MESSAGE.replace("CONTENT", content) + OPENING)
    with pytest.raises(ConfigError, match=message) as error:
        load_chat(str(folder))
    assert len(str(error.value).splitlines()) == 1


def test_a_template_that_leaves_the_system_message_out_takes_none(tmp_path):
    folder = write_folder(tmp_path, "chatml")
    (folder / "chat_template.jinja").write_text(
        MESSAGE.replace("CONTENT", "m.content").replace(" in messages", " in messages if m.role != 'system'") + OPENING
    )
    chat = load_chat(str(folder))
    assert chat.first_prompt("a")
    with pytest.raises(ConfigError, match="config.episode.system_prompt: .* takes no system message: leave it out"):
        chat.first_prompt("a", "Be brief.")


def test_white_space_behind_the_end_of_a_response_is_taken_away_with_it():
    chat = chat_of("phi3")
    for closed, end in ((True, ""), (False, "<|end|>")):
        shown = chat.tokenizer.show(chat.next_prompt("b", closed=closed))
        assert shown == end + "<|user|>b<|end|><|assistant|>"


def test_llama2_trims_system_and_user_message_as_one():
    chat = chat_of("llama2")
    ours = chat.first_prompt(" a ", " s ")
    assert ours == whole_ids(chat, MODELS["llama2"].rendered().render(user_says(" a ", system=" s ")))
    assert chat.tokenizer.show(ours) == "<s>[INST] <<SYS>>\n s \n<</SYS>>\n\n a [/INST]"
    assert chat.tokenizer.show(chat.first_prompt(" a ")) == "<s>[INST] a [/INST]"


def test_a_system_message_that_switches_something_is_refused():
    chat = chat_of("smollm3")
    assert "Be brief.\n\n<|im_end|>" in chat.tokenizer.show(chat.first_prompt("a", "Be brief."))
    with pytest.raises(ConfigError, match="config.episode.system_prompt: .*takes it for more than text.*chat_options"):
        chat.first_prompt("a", "Be brief. /no_think")
    assert "Today Date: 26 July 2024" in chat.tokenizer.show(chat.first_prompt("a"))  # whatever the day is
