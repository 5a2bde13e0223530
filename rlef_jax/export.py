"""Writes a Hugging Face folder: python -m rlef_jax.export --output=FOLDER --workdir=runs/x | --init=WEIGHTS

From a run of rlef_jax.train or rlef_jax.sft (`--workdir`) the policy of a checkpoint, or from a folder or GGUF file
(`--init`) what it holds. The result, config.json, safetensors, the tokenizer's files, generation_config.json and a
model card, is what `transformers` loads.
Tensors keep the dtype that they had where the run started (--dtype=same): one that nothing changed has the same bytes.
Of a run that trains adapters (config.model.lora_rank) the result is a model with the adapters in its weights; with
--adapters it is a folder of the adapters alone, which `peft` loads, and with --base what they belong beside.
With --push=OWNER/NAME the folder then goes to the Hub.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
from absl import logging
from jax.sharding import SingleDeviceSharding

from rlef_jax import arguments
from rlef_jax import config as config_lib
from rlef_jax.analysis.model_card import RunFacts, model_card
from rlef_jax.analysis.summary import FILE_NAME, read_summary, summary_table
from rlef_jax.command_line import errors_as_lines
from rlef_jax.dialog.chat import ChatFormat
from rlef_jax.dialog.fast_tokenizer import FastTokenizer
from rlef_jax.dialog.load import GENERATION, gguf_template, load_chat
from rlef_jax.errors import ConfigError
from rlef_jax.files import write_text
from rlef_jax.model.gguf_file import open_gguf
from rlef_jax.model.hf_export import SHARD_BYTES, base_model_of, is_hub_name, license_of, tensor_reader, write_model
from rlef_jax.model.hub import HubRepository
from rlef_jax.model.lora import split
from rlef_jax.model.parameters import abstract_params
from rlef_jax.model.peft_folder import write_adapters
from rlef_jax.model.pretrained import check_tensors, open_weights
from rlef_jax.model.weights import resolve
from rlef_jax.paths import local_text
from rlef_jax.training.build import build_policy, describe_policy, with_model_shape
from rlef_jax.training.evaluator import scored_version
from rlef_jax.training.workdir import SFT, check_first_weights, command_of, find_checkpoint, saved_policy

_DTYPES = {"same": "", "float32": "F32", "bfloat16": "BF16"}
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json", "additional_chat_templates/*",
)  # fmt: skip
_LICENSES = ("LICENSE*", "NOTICE*", "USE_POLICY*")  # who passes weights on passes these on
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def export_run(
    workdir: Path,
    output: Path,
    *,
    checkpoint: str = "last",
    dtype: str = "same",
    shard_bytes: int = SHARD_BYTES,
    name: str = "",
    base_model: str = "",
    adapters: bool = False,
    base: bool = False,
) -> None:
    """Writes the policy of a checkpoint: "best", "last" or an iteration (of fine-tuning: a step).

    Args: shard_bytes: of one safetensors file at most. name, base_model: for the model card, OWNER/NAME; "" is the
    folder's name, and what the weights' files say. adapters: these alone, float32, as PEFT has them. base: the weights
    that a run's adapters are trained beside, alone, whatever the checkpoint.

    Raises ConfigError where there is no such checkpoint, or it can't be written as the folder; then `output` is as it
    was.
    """
    config = with_model_shape(config_lib.load_saved(workdir))
    cfg, chat, weights = describe_policy(config)
    if (adapters or base) and cfg.lora is None:
        flag = "--adapters" if adapters else "--base"
        raise ConfigError(f"{flag}: {workdir} trains all weights (config.model.lora_rank=0): leave it out")
    init, run = config.model.init, None
    if base:
        first = build_policy(config).params
        check_first_weights(workdir, first)
        cfg, params = cfg.base, {**first, "layers": split(first["layers"])[0]}
    else:
        sharding = SingleDeviceSharding(jax.devices()[0])
        abstract = abstract_params(cfg, config.model.param_dtype, sharding)
        run = _facts(workdir, config, find_checkpoint(workdir, checkpoint))
        params = saved_policy(workdir, checkpoint, abstract, lambda: build_policy(config).params)
    read, kind, origin = tensor_reader(params, cfg), _DTYPES[dtype], f"{workdir}, {'base' if base else checkpoint}"
    with _emptied_after_errors(output):
        _write_tokenizer(output, config.model.tokenizer, chat, generation_of=init)
        if config.model.chat:  # the run's template, not the original's; transformers takes this file first
            shutil.copyfile(config.model.chat, output / "chat_template.jinja")
        _write_card(output, init, name, base_model, run, adapters=adapters)
        if adapters:
            write_adapters(output, params, cfg, base_model or _base_of(init))
            return
        write_model(output, cfg, read, like=weights, origin=lambda _: origin, dtype=kind, most=shard_bytes)


def export_weights(
    init: str,
    output: Path,
    *,
    dtype: str = "same",
    shard_bytes: int = SHARD_BYTES,
    name: str = "",
    base_model: str = "",
) -> None:
    """Writes what a folder or GGUF file holds; arguments and errors as `export_run`'s."""
    weights = open_weights(init)
    if weights is None:
        raise ConfigError(f"--init: {init!r} is neither a Hugging Face folder nor a .gguf file")
    check_tensors(weights, weights.cfg)
    chat = load_chat(init)
    kind, origin = _DTYPES[dtype], weights.file_of
    with _emptied_after_errors(output):
        _write_tokenizer(output, init, chat, generation_of=init)
        _write_card(output, init, name, base_model, None)
        write_model(output, weights.cfg, weights.read, like=weights, origin=origin, dtype=kind, most=shard_bytes)


@contextlib.contextmanager
def _emptied_after_errors(output: Path) -> Iterator[None]:
    """A folder to write, new or empty; after an error it is as it was."""
    existed = output.is_dir()
    if output.exists() and (not existed or any(output.iterdir())):
        raise ConfigError(f"--output: {output} exists and isn't an empty folder")
    output.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in output.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not existed:
            output.rmdir()
        raise


def _write_tokenizer(output: Path, tokenizer: str, chat: ChatFormat, generation_of: str) -> None:
    """The tokenizer's files, copied or generated, and generation_config.json: copied, or with the format's stop ids."""
    path = Path(tokenizer)
    if path.suffix == ".gguf" and isinstance(chat.tokenizer, FastTokenizer):
        chat.tokenizer.whole.save(str(output / "tokenizer.json"))
        template, special = gguf_template(open_gguf(path))
        tokenizer_config = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
        if template is not None:
            tokenizer_config["chat_template"] = template
        (output / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n")
    elif isinstance(chat.tokenizer, FastTokenizer):
        _copy(path if path.is_dir() else path.parent, output, _TOKENIZER_FILES)
    else:
        shutil.copyfile(resolve(tokenizer, ".model", "model.tokenizer"), output / "tokenizer.model")
    model_folder = Path(generation_of)
    if generation_of and (model_folder / GENERATION).is_file():
        _copy(model_folder, output, (GENERATION,))
    else:
        (output / GENERATION).write_text(json.dumps({"eos_token_id": list(chat.stop_ids)}, indent=2) + "\n")


def _base_of(init: str) -> str:
    """What `peft` loads adapters beside: OWNER/NAME where the weights' files say so, or the folder where they lie; ""
    for what it couldn't load, another sort of file or random weights."""
    return (base_model_of(Path(init)) or init) if init and Path(init).is_dir() else ""


def _write_card(
    output: Path, init: str, name: str, base_model: str, run: RunFacts | None, *, adapters: bool = False
) -> None:
    license = ""
    if init and (model_folder := Path(init)).is_dir():
        _copy(model_folder, output, _LICENSES)
        base_model, license = base_model or base_model_of(model_folder), license_of(model_folder)
    text = model_card(
        name or output.resolve().name, init, base_model=base_model, license=license, run=run, adapters=adapters
    )
    write_text(output / "README.md", text)


def _facts(workdir: Path, config: config_lib.ConfigDict, iteration: int) -> RunFacts:
    version = scored_version(workdir, "rlef")
    return RunFacts(
        iteration=iteration,
        of=config.train.iterations,
        scored=None if version is None else version // config.ppo.updates,
        table=summary_table(read_summary(workdir)) if (workdir / FILE_NAME).is_file() else "",
        config=config_lib.flat(config),
        fine_tuned=command_of(workdir) == SFT,
    )


def _copy(source: Path, output: Path, patterns: tuple[str, ...]) -> None:
    for pattern in patterns:
        for path in source.glob(pattern):
            if path.is_file():
                target = output / path.relative_to(source)
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, target)


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?B)?", text.upper())
    if match is None or (size := int(float(match[1]) * _UNITS[match[2] or ""])) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 5GB, 500MB or 2GiB")
    return size


def main() -> None:
    """Prints where the folder lies, and where it was pushed to."""
    parser = arguments.Parser(description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", type=arguments.path, help="a run of rlef_jax.train or rlef_jax.sft")
    source.add_argument("--init", help="a Hugging Face folder or a .gguf file")
    parser.add_argument(
        "--output", type=arguments.path, required=True, help="a folder that isn't there yet, or is empty"
    )
    parser.add_argument("--checkpoint", default="last", help="of a run: best (by validation), last, or its iteration"
                        " (of rlef_jax.sft: its step)")  # fmt: skip
    part = parser.add_mutually_exclusive_group()
    part.add_argument(
        "--adapters", action="store_true", help="of a run that trains adapters: these alone, as peft has them"
    )
    part.add_argument("--base", action="store_true", help="of such a run: the weights beside them alone")
    parser.add_argument("--dtype", choices=tuple(_DTYPES), default="same", help="of the tensors")
    parser.add_argument("--shard-size", type=_size, default=SHARD_BYTES, help="of one safetensors file (5GB)")
    parser.add_argument("--base-model", default="", help="OWNER/NAME of the model that it was made from, for the card")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload the folder to this repository, made if need be")
    parser.add_argument("--public", action="store_true", help="a repository that --push makes is seen by everybody")
    logging.set_verbosity(logging.FATAL)  # or Orbax talks of every folder that it looks at
    with errors_as_lines():
        args = parser.parse_args()
        if args.base_model and not is_hub_name(args.base_model):
            raise ConfigError(f"--base-model: {args.base_model!r} is no OWNER/NAME of a model on the Hub: leave it out")
        hub = HubRepository(args.push, public=args.public) if args.push is not None else None
        common = {"dtype": args.dtype, "shard_bytes": args.shard_size, "base_model": args.base_model}
        common["name"] = args.push or ""
        if args.workdir is not None:
            parts = {"adapters": args.adapters, "base": args.base}
            export_run(args.workdir, args.output, checkpoint=args.checkpoint, **parts, **common)
        elif args.adapters or args.base:
            raise ConfigError(f"--{'adapters' if args.adapters else 'base'}: only a run (--workdir) has some")
        else:
            export_weights(local_text(args.init, "--init"), args.output, **common)
        print(args.output)
        if hub is not None:
            print(hub.upload(args.output, f"rlef_jax: {args.workdir or args.init}"))


if __name__ == "__main__":
    main()
