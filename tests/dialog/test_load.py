"""What a model's folder says of its dialogues is found, or is refused in one line."""

from __future__ import annotations

import json

import pytest
from tokenizers import AddedToken

from rlef_jax.dialog.load import load_chat
from rlef_jax.errors import ConfigError
from tests.helpers.byte_bpe import TEMPLATES, byte_bpe, write_tokenizer
from tests.helpers.chat_templates import MODELS, write_folder


@pytest.mark.parametrize(
    "template, chat, options, message",
    [
        (None, "", "", r"has no chat template, as base models don't: name a file of one \(\.jinja\) in config"),
        (None, "llama2", "", r"config\.model\.chat: 'llama2' is no file of a chat template \(\.jinja\)"),
        (None, "none.jinja", "", r"config\.model\.chat: 'none\.jinja' is no file"),
        ("{{ raise_exception('no') }}", "", "", "its chat template can't be used: no; name another"),
        (TEMPLATES["chatml"], "", "enable_thinking", r"config\.model\.chat_options: 'enable_thinking' is not JSON"),
        (TEMPLATES["chatml"], "", "[" * 5000, r"config\.model\.chat_options: '\[+' is not JSON"),
        (TEMPLATES["chatml"], "", '{"messages": []}', r"config\.model\.chat_options: messages isn't free"),
        (TEMPLATES["chatml"], "", "[1]", r"config\.model\.chat_options: '\[1\]' is no JSON object"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named(template, chat, options, message, tmp_path):
    with pytest.raises(ConfigError, match=message) as error:
        load_chat(str(write_tokenizer(tmp_path, template)), chat, options)
    assert len(str(error.value).splitlines()) == 1


def test_the_tiny_models_format_takes_no_template():
    for template_arguments, key in ((("x.jinja", ""), "chat"), (("", "{}"), "chat_options")):
        with pytest.raises(ConfigError, match=rf"config\.model\.{key}: package:tokenizer has a format of its own"):
            load_chat("package:tokenizer", *template_arguments)


def test_a_template_of_ones_own(tmp_path):
    folder = write_tokenizer(tmp_path / "model", None)
    (tmp_path / "own.jinja").write_text(MODELS["qwen3"].text)
    chat = load_chat(str(folder), str(tmp_path / "own.jinja"), '{"enable_thinking": false}')
    assert chat.tokenizer.show(chat.first_prompt("Hi")).endswith("assistant\n<think>\n\n</think>\n\n")
    (tmp_path / "own.jinja").write_text(TEMPLATES["chatml"], encoding="utf-8-sig")  # as editors on Windows do
    chat = load_chat(str(folder), str(tmp_path / "own.jinja"), '{"bos_token": "x"}')
    assert chat.tokenizer.show(chat.first_prompt("Hi")).startswith("<|im_start|>user")
    (tmp_path / "own.jinja").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"config\.model\.chat: .*own\.jinja cannot be read: 'utf-8' codec"):
        load_chat(str(folder), str(tmp_path / "own.jinja"))
    named = {"default": TEMPLATES["chatml"], "tools": "{{ raise_exception('no') }}"}
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = [{"name": name, "template": text} for name, text in named.items()]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert "<think>" not in load_chat(str(folder)).tokenizer.show(load_chat(str(folder)).first_prompt("Hi"))


@pytest.mark.parametrize("where", ["tokenizer_config.json", "special_tokens_map.json"])
def test_bos_comes_once_whichever_file_names_it(where, tmp_path):
    folder = write_tokenizer(tmp_path, None)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    (folder / where).write_text(json.dumps({"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}))
    (folder / "chat_template.jinja").write_text(TEMPLATES["llama3"])
    backend = byte_bpe()
    state = json.loads(backend.to_str())
    bos = backend.token_to_id("<|begin_of_text|>")
    state["post_processor"] = {
        "type": "TemplateProcessing", "pair": [sequence := {"Sequence": {"id": "A", "type_id": 0}}],
        "single": [{"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}}, sequence],
        "special_tokens": {
            "<|begin_of_text|>": {"id": "<|begin_of_text|>", "ids": [bos], "tokens": ["<|begin_of_text|>"]}
        },
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(state))
    chat = load_chat(str(folder))
    for ids in (chat.first_prompt("Hi"), chat.first_prompt("Hi", "<|begin_of_text|>x"), chat.user_turn("Hi")):
        assert ids.count(bos) == (ids[0] == bos)
    assert chat.first_prompt("Hi")[0] == bos
    assert bos not in [*chat.next_prompt("Hi", closed=False), *chat.another_prompt("Hi"), *chat.response("x")]


def test_ids_that_a_models_files_name_end_a_response(tmp_path):
    backend = byte_bpe()
    backend.add_special_tokens([AddedToken("<|turn_end|>", normalized=False)])
    folder = write_tokenizer(tmp_path / "model", TEMPLATES["chatml"])
    backend.save(str(folder / "tokenizer.json"))
    end, im_end = (backend.token_to_id(mark) for mark in ("<|turn_end|>", "<|im_end|>"))
    assert end not in load_chat(str(folder)).stop_ids
    for named in ([end, im_end], end):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": named}))
        stops = load_chat(str(folder)).stop_ids
        assert end in stops and stops[0] == im_end and backend.token_to_id("<|eot_id|>") in stops
    for named in ([end, 10**6], "<|turn_end|>", -1, [end, -1], 10**20, True):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": named}))
        with pytest.raises(ConfigError, match=r"generation_config\.json: .* is no token of the tokenizer"):
            load_chat(str(folder))
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"generation_config\.json: cannot be read"):
        load_chat(str(folder))


def test_a_tokenizer_with_code_of_its_own_is_refused(tmp_path):
    folder = write_folder(tmp_path, "chatml")
    (folder / "tokenizer.json").unlink()
    settings = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "own.py").write_text("raise SystemExit('was run')")
    with pytest.raises(ConfigError, match="its tokenizer can't be read by transformers"):
        load_chat(str(folder))
