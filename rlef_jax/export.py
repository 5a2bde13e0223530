"""Writes a Hugging Face folder: python -m rlef_jax.export --output=FOLDER --workdir=runs/x | --init=WEIGHTS

From a run (`--workdir`) the policy of a checkpoint, or from a folder or GGUF file (`--init`) what it holds. The result,
config.json, safetensors, the tokenizer's files and generation_config.json, is what `transformers` loads. Tensors keep
the dtype that they had where the run started (--dtype=same): one that nothing changed has the same bytes.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
from absl import logging
from jax.sharding import SingleDeviceSharding

from rlef_jax import arguments
from rlef_jax import config as config_lib
from rlef_jax.command_line import errors_as_lines
from rlef_jax.dialog.chat import ChatFormat
from rlef_jax.dialog.fast_tokenizer import FastTokenizer
from rlef_jax.dialog.load import GENERATION, gguf_template, load_chat
from rlef_jax.errors import ConfigError
from rlef_jax.model.gguf_file import open_gguf
from rlef_jax.model.hf_export import tensor_reader, write_model
from rlef_jax.model.parameters import abstract_params
from rlef_jax.model.pretrained import check_tensors, open_weights
from rlef_jax.model.weights import resolve
from rlef_jax.paths import local_text
from rlef_jax.training.build import build_policy, describe_policy, with_model_shape
from rlef_jax.training.workdir import saved_policy

_DTYPES = {"same": "", "float32": "F32", "bfloat16": "BF16"}
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "chat_template.jinja",
)  # fmt: skip


def export_run(workdir: Path, output: Path, *, checkpoint: str = "last", dtype: str = "same") -> None:
    """Writes the policy of a checkpoint: "best", "last" or an iteration. Raises ConfigError where there is none."""
    config = with_model_shape(config_lib.load_saved(workdir))
    cfg, chat, weights = describe_policy(config)
    here = SingleDeviceSharding(jax.devices()[0])
    like = abstract_params(cfg, config.model.param_dtype, here)
    params = saved_policy(workdir, checkpoint, like, lambda: build_policy(config).params)
    _make_empty(output)
    read = tensor_reader(params, cfg)
    write_model(output, cfg, read, like=weights, origin=lambda _: f"{workdir}, {checkpoint}", dtype=_DTYPES[dtype])
    _write_tokenizer(output, config.model.tokenizer, chat, generation_of=config.model.init)


def export_weights(init: str, output: Path, *, dtype: str = "same") -> None:
    """Writes what a folder or GGUF file holds. Raises ConfigError where it can't be used."""
    weights = open_weights(init)
    if weights is None:
        raise ConfigError(f"--init: {init!r} is neither a Hugging Face folder nor a .gguf file")
    check_tensors(weights, weights.cfg)
    chat = load_chat(init)
    _make_empty(output)
    write_model(output, weights.cfg, weights.read, like=weights, origin=weights.file_of, dtype=_DTYPES[dtype])
    _write_tokenizer(output, init, chat, generation_of=init)


def _make_empty(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"--output: {output} exists and isn't an empty folder")
    output.mkdir(parents=True, exist_ok=True)


def _write_tokenizer(output: Path, tokenizer: str, chat: ChatFormat, generation_of: str) -> None:
    """The tokenizer's files, copied or made, and generation_config.json: copied, or with the format's stop ids."""
    path = Path(tokenizer)
    if path.suffix == ".gguf" and isinstance(chat.tokenizer, FastTokenizer):
        chat.tokenizer.whole.save(str(output / "tokenizer.json"))
        template, special = gguf_template(open_gguf(path))
        told = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
        if template is not None:
            told["chat_template"] = template
        (output / "tokenizer_config.json").write_text(json.dumps(told, indent=2) + "\n")
    elif isinstance(chat.tokenizer, FastTokenizer):
        folder = path if path.is_dir() else path.parent
        for name in _TOKENIZER_FILES:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, output / name)
    else:
        shutil.copyfile(resolve(tokenizer, ".model", "model.tokenizer"), output / "tokenizer.model")
    given = Path(generation_of) / GENERATION
    if given.is_file():
        shutil.copyfile(given, output / GENERATION)
    else:
        (output / GENERATION).write_text(json.dumps({"eos_token_id": list(chat.stop_ids)}, indent=2) + "\n")


def main() -> None:
    """Prints where the folder lies."""
    parser = arguments.Parser(description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", type=arguments.path, help="a run of rlef_jax.train")
    source.add_argument("--init", help="a Hugging Face folder or a .gguf file")
    parser.add_argument(
        "--output", type=arguments.path, required=True, help="a folder that isn't there yet, or is empty"
    )
    parser.add_argument("--checkpoint", default="last", help="of a run: best (by validation), last, or its iteration")
    parser.add_argument("--dtype", choices=tuple(_DTYPES), default="same", help="of the tensors")
    logging.set_verbosity(logging.FATAL)  # or Orbax talks of every folder that it looks at
    with errors_as_lines():
        args = parser.parse_args()
        if args.workdir is not None:
            export_run(args.workdir, args.output, checkpoint=args.checkpoint, dtype=args.dtype)
        else:
            export_weights(local_text(args.init, "--init"), args.output, dtype=args.dtype)
        print(args.output)


if __name__ == "__main__":
    main()
