"""Loads the chat format that `config.model.tokenizer` and `config.model.chat` name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlef_jax.dialog import fast_tokenizer
from rlef_jax.dialog.chat import ChatFormat, ChatStyle
from rlef_jax.dialog.fast_tokenizer import FastTokenizer
from rlef_jax.dialog.gguf_vocabulary import from_gguf
from rlef_jax.dialog.styles import STYLES, style_named, style_of
from rlef_jax.dialog.tokenizer import Tokenizer
from rlef_jax.errors import ConfigError
from rlef_jax.model.gguf_file import GGUFFile, open_gguf
from rlef_jax.model.weights import resolve

KEY = "model.tokenizer"
GENERATION = "generation_config.json"
_GGUF_STOPS = ("eos", "eot", "eom")


def load_chat(tokenizer: str, style: str = "") -> ChatFormat:
    """The chat format with its tokenizer.

    Args:
      tokenizer: package:NAME or a SentencePiece `.model` file (as the tiny model has); a Hugging Face folder or its
        tokenizer.json; a GGUF file.
      style: one of `styles.STYLES`; "" means the format of the folder's or file's chat template, or the tiny model's.

    Raises ConfigError if the tokenizer can't be used, its template is unknown, or it lacks the format's marks.
    """
    path = Path(tokenizer)
    template: str | None = None
    special: dict[str, str] = {}
    stops: tuple[int, ...] = ()
    loaded: Any
    if path.suffix == ".gguf":
        file = open_gguf(resolve(tokenizer, "", KEY))
        loaded, (template, special) = from_gguf(file.field, path), gguf_template(file)
        stops = _stops(loaded, [file.field(f"tokenizer.ggml.{name}_token_id") for name in _GGUF_STOPS], path)
    elif path.is_dir() or path.name == "tokenizer.json":
        folder = path if path.is_dir() else path.parent
        loaded, (template, special) = fast_tokenizer.from_folder(folder), _folder_template(folder)
        stops = _stops(loaded, _generation_stops(folder / GENERATION), folder / GENERATION)
    else:
        loaded, style = _sentencepiece(tokenizer), style or "tiny"
    try:
        return ChatFormat(loaded, _style(style, template, special, tokenizer), stops)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"config.model.chat: {tokenizer}: {error}") from error


def _generation_stops(path: Path) -> list[Any]:
    """The eos_token_id (one or several) of a generation_config.json; [] without such a file."""
    if not path.is_file():
        return []
    try:
        stops = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error!r}") from error
    return stops if isinstance(stops, list) else [stops]


def _stops(tokenizer: FastTokenizer, ids: Sequence[Any], source: Path) -> tuple[int, ...]:
    """The ids from a model's files that end a response. Raises ConfigError for an id without a token."""
    stops = [i for i in ids if i is not None]
    if unknown := [i for i in stops if type(i) is not int or tokenizer.whole.id_to_token(i) is None]:
        raise ConfigError(
            f"{source}: {unknown[0]!r} ends a response there (eos_token_id), and is no token of the tokenizer: correct"
            " one of the two"
        )
    return tuple(stops)


def _sentencepiece(name: str) -> Tokenizer:
    path = resolve(name, ".model", KEY)
    try:
        return Tokenizer.load(path)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"config.{KEY}: {path}: {error}") from error


def _style(name: str, template: str | None, special: dict[str, str], source: str) -> ChatStyle:
    if name:
        return style_named(name)
    if template is None:
        raise ConfigError(f"{source} has no chat template: set config.model.chat to one of {', '.join(STYLES)}")
    return style_of(template, special, source)


def gguf_template(file: GGUFFile) -> tuple[str | None, dict[str, str]]:
    """(template, special tokens by name) of a GGUF file."""
    tokens = file.field("tokenizer.ggml.tokens", [])
    special = {}
    for name in ("bos", "eos"):
        i = file.field(f"tokenizer.ggml.{name}_token_id")
        if i is not None and i < len(tokens):
            special[f"{name}_token"] = tokens[i]
    return file.field("tokenizer.chat_template"), special


def _folder_template(folder: Path) -> tuple[str | None, dict[str, str]]:
    path = folder / "tokenizer_config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        template = settings.get("chat_template")
        if (folder / "chat_template.jinja").is_file():
            template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        if isinstance(template, list):  # several named templates
            template = next((entry["template"] for entry in template if entry["name"] == "default"), None)
        tokens = {name: settings.get(name) for name in ("bos_token", "eos_token")}
        return template, {name: _spelling(token) for name, token in tokens.items() if token}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error!r}") from error


def _spelling(token: Any) -> str:
    return token["content"] if isinstance(token, dict) else token
