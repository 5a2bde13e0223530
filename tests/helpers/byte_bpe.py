"""A small byte-level BPE tokenizer with the special tokens of every published chat format, and their templates.

The templates are what Hugging Face's folders have for messages of text, without tools: shortened, the same words.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.parity import cases

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MARKS = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>",
    "<|endoftext|>", "<|im_start|>", "<|im_end|>",
)  # fmt: skip
WORDS = ("<think>", "</think>")  # added tokens that Hugging Face doesn't call special

_LLAMA_ROLE = "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
_LLAMA_MESSAGE = f"{{{{ {_LLAMA_ROLE} + message['content'] | trim + '<|eot_id|>' }}}}"
_LLAMA_END = "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
_CHATML_MESSAGE = "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
_CHATML_END = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"


def _chatml(default: str = "") -> str:
    head = (
        "{% if messages[0]['role'] != 'system' %}"
        f"{{{{ '<|im_start|>system\\n{default}<|im_end|>\\n' }}}}{{% endif %}}"
    )
    loop = f"{{% for message in messages %}}{_CHATML_MESSAGE}{{% endfor %}}{_CHATML_END}"
    return (head if default else "") + loop


TEMPLATES = {
    "llama3": f"{{{{ bos_token }}}}{{% for message in messages %}}{_LLAMA_MESSAGE}{{% endfor %}}{_LLAMA_END}",
    "llama31": (
        "{{- bos_token }}\n"
        "{%- if strftime_now is defined %}{%- set date_string = strftime_now('%d %b %Y') %}"
        "{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}\n"
        "{%- if messages[0]['role'] == 'system' %}\n"
        "    {%- set system_message = messages[0]['content']|trim %}\n    {%- set messages = messages[1:] %}\n"
        "{%- else %}\n    {%- set system_message = '' %}\n{%- endif %}\n"
        "{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}\n"
        "{{- 'Cutting Knowledge Date: December 2023\\n' }}\n{{- 'Today Date: ' + date_string + '\\n\\n' }}\n"
        "{{- system_message }}\n{{- '<|eot_id|>' }}\n"
        f"{{%- for message in messages %}}{_LLAMA_MESSAGE}{{%- endfor %}}{_LLAMA_END}"
    ),
    "chatml": _chatml(),
    "smollm2": _chatml("You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
    "qwen2": _chatml("You are a helpful assistant."),
    "qwen25": _chatml("You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
}


def byte_bpe(marks: Sequence[str] = MARKS, words: Sequence[str] = WORDS, *, rstrip: bool = False) -> Tokenizer:
    """About 600 tokens, split as Llama 3 splits; `rstrip`: marks take the white space after them away."""
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(SPLIT), "isolated"), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    texts = [message["content"] for conversation in cases.CONVERSATIONS for message in conversation]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(mark, normalized=False, rstrip=rstrip) for mark in marks])
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    return tokenizer


def write_tokenizer(folder: Path, template: str | None) -> Path:
    """A Hugging Face folder with this tokenizer and a chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    byte_bpe().save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
