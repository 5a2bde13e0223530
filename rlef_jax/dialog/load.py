"""Loads the chat format that `config.model.tokenizer` and `config.model.chat` name."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlef_jax.dialog import gguf_vocabulary
from rlef_jax.dialog.chat import ChatFormat, TextTokenizer
from rlef_jax.dialog.derive import derive
from rlef_jax.dialog.fast_tokenizer import FastTokenizer, read_folder
from rlef_jax.dialog.prove import check_system, prove
from rlef_jax.dialog.template import Template, parse_options
from rlef_jax.dialog.tokenizer import Tokenizer
from rlef_jax.errors import ConfigError
from rlef_jax.hugging_face import transformers
from rlef_jax.model.gguf_file import GGUFFile, open_gguf
from rlef_jax.model.weights import resolve

KEY = "model.tokenizer"
GENERATION = "generation_config.json"
_GGUF_STOPS = ("eos", "eot", "eom")
# Where a vocabulary has them as special tokens, published models end texts, turns and messages with these.
_ENDS = (
    "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>", "</s>",
)  # fmt: skip


def load_chat(tokenizer: str, chat: str = "", options: str = "") -> ChatFormat:
    """The chat format with its tokenizer.

    Args:
      tokenizer: package:NAME or a SentencePiece `.model` file (as the tiny model has); a Hugging Face folder or its
        tokenizer.json; a GGUF file.
      chat: a Jinja chat template (.jinja); "" means the folder's or file's own, or the tiny model's format.
      options: what the template is given beside the messages: a JSON object, such as '{"enable_thinking": false}'.

    Raises ConfigError if the tokenizer or its template can't be used.
    """
    files = _files(tokenizer)
    if isinstance(files, Tokenizer):
        if chat or options:
            key = "chat" if chat else "chat_options"
            raise ConfigError(f"config.model.{key}: {tokenizer} has a format of its own, and takes no template")
        return ChatFormat(files)
    source, text = _template(chat, files.template, tokenizer)
    return _derived(Template(source, text, files.special, parse_options(options)), files.tokenizer, files.stops)


def load_tokenizer(tokenizer: str) -> TextTokenizer:
    """The tokenizer alone, see `load_chat`."""
    files = _files(tokenizer)
    return files if isinstance(files, Tokenizer) else files.tokenizer


class _Files(NamedTuple):
    """What a published model's files say of its dialogues: `stops` end a response."""

    tokenizer: FastTokenizer
    template: Any
    special: Mapping[str, str]
    stops: tuple[int, ...]


def _files(name: str) -> Tokenizer | _Files:
    path = Path(name)
    if path.suffix == ".gguf":
        file = open_gguf(resolve(name, "", KEY))
        tokenizer, (template, special) = gguf_vocabulary.from_gguf(file.field, path), gguf_template(file)
        stop_ids = [file.field(f"tokenizer.ggml.{kind}_token_id") for kind in _GGUF_STOPS]
        return _Files(tokenizer, template, special, _stops(tokenizer, stop_ids, path))
    if path.is_dir() or path.name == "tokenizer.json":
        folder = path if path.is_dir() else path.parent
        hf_tokenizer = read_folder(folder)
        tokenizer = _usable(hf_tokenizer.backend_tokenizer, folder)
        stops = _stops(tokenizer, [*_generation_stops(folder), hf_tokenizer.eos_token_id], folder / GENERATION)
        return _Files(tokenizer, hf_tokenizer.chat_template, hf_tokenizer.special_tokens_map, stops)
    return _sentencepiece(name)


def _derived(template: Template, tokenizer: FastTokenizer, stops: Sequence[int]) -> ChatFormat:
    """The template's format, proven on texts."""
    marks = list(tokenizer.marks)
    style, notes = derive(template, marks)
    ends = [tokenizer.marks[mark] for mark in _ENDS if mark in tokenizer.marks]
    check = functools.cache(lambda system: check_system(template, style, system))
    chat = ChatFormat(tokenizer, style, (*stops, *ends), notes, check)
    prove(template, chat, tokenizer.whole, marks)
    return chat


def _template(chat: str, model_template: Any, tokenizer: str) -> tuple[str, str]:
    """(where the chat template is from, its text): the file that `config.model.chat` names, or the model's own."""
    if chat:
        if not chat.endswith(".jinja") or not Path(chat).is_file():
            raise ConfigError(
                f'config.model.chat: {chat!r} is no file of a chat template (.jinja); "" takes the model\'s own'
            )
        try:
            return chat, Path(chat).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"config.model.chat: {chat} cannot be read: {error}") from error
    if isinstance(model_template, Mapping):  # several, by name
        model_template = model_template.get("default")
    if not isinstance(model_template, str):
        raise ConfigError(
            f"{tokenizer} has no chat template, as base models don't: name a file of one (.jinja) in config.model.chat"
        )
    return tokenizer, model_template


def _generation_stops(folder: Path) -> list[Any]:
    """The eos_token_id (one or several) of a folder's generation_config.json; [] without such a file."""
    if not (folder / GENERATION).is_file():
        return []
    try:
        stops = transformers().GenerationConfig.from_pretrained(str(folder), local_files_only=True).eos_token_id
    except Exception as error:  # whatever the file makes the library raise
        raise ConfigError(f"{folder / GENERATION}: cannot be read: {error!r}") from error
    return stops if isinstance(stops, list) else [stops]


def _stops(tokenizer: FastTokenizer, ids: Sequence[Any], source: Path) -> tuple[int, ...]:
    """The ids from a model's files that end a response. Raises ConfigError for an id without a token."""
    stops = [i for i in ids if i is not None]
    ids_with_token = tokenizer.whole.get_vocab(with_added_tokens=True).values()
    if unknown := [i for i in stops if type(i) is not int or i not in ids_with_token]:
        raise ConfigError(
            f"{source}: {unknown[0]!r} ends a response there (eos_token_id), and is no token of the tokenizer: correct"
            " one of the two"
        )
    return tuple(stops)


def _usable(backend: Any, folder: Path) -> FastTokenizer:
    try:
        return FastTokenizer(backend)
    except ValueError as error:
        raise ConfigError(f"{folder}: {error}") from error


def _sentencepiece(name: str) -> Tokenizer:
    path = resolve(name, ".model", KEY)
    try:
        return Tokenizer.load(path)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"config.{KEY}: {path}: {error}") from error


def gguf_template(file: GGUFFile) -> tuple[str | None, dict[str, str]]:
    """(template, special tokens by name) of a GGUF file."""
    tokens = file.field("tokenizer.ggml.tokens", [])
    special = {}
    for name in ("bos", "eos"):
        i = file.field(f"tokenizer.ggml.{name}_token_id")
        if i is not None and i < len(tokens):
            special[f"{name}_token"] = tokens[i]
    return file.field("tokenizer.chat_template"), special
