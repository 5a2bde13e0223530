"""What a run reads beside its configuration, by content: one that goes on must go on over the same.

The configuration names folders, files and versions; what lies behind a name may change between two starts: data that
was built anew, another model in the same folder, a Python that was upgraded. `identities` says what is there, in a few
seconds whatever the size, `check_inputs` compares it with what the folder's inputs.json has recorded.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from rlef_jax.data import mini_contests
from rlef_jax.data.code_contests.reader import shard_hashes
from rlef_jax.data.jsonl import reader as jsonl
from rlef_jax.data.sources import JSONL, MINI_CONTESTS, Source
from rlef_jax.errors import ConfigError
from rlef_jax.execution.interpreter import Interpreter
from rlef_jax.files import write_json
from rlef_jax.model.peft_folder import CONFIG, TENSORS
from rlef_jax.model.weights import path_of, resolve
from rlef_jax.training.episode_io import problem_json

RECORD = "inputs.json"
PYTHON = "programs' Python (config.execution.python)"
_PACKAGES = "packages of programs' Python (config.execution.python)"
_DRAWS = 16  # problems that tell one MiniContests from another
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "chat_template.jinja", "generation_config.json",
)  # fmt: skip
_HEAD, _BLOCK, _BLOCKS = 16 << 20, 64 << 10, 256  # bytes that are read of a large file
_NAMED = 5  # facts in one line

# Facts about each input, by a name that says which key leads to it.
type Inputs = Mapping[str, Sequence[str]]


def identities(config: ConfigDict, interpreter: Interpreter, source: Source, splits: Sequence[str]) -> Inputs:
    """What is behind a run's names: problems, tokenizer, first weights, and the Python that runs programs.

    Args:
      config: complete, see `build.with_model_shape`.
      interpreter: the judge's.
      source: with its rules applied (`sources.fit`).
      splits: those of its splits that are read.

    Raises ConfigError or OSError where something can't be read.
    """
    facts: dict[str, Sequence[str]] = {
        f"problems of {split} (config.data)": problems_identity(source, split) for split in splits
    }
    for share in source.mix:
        facts[f"problems of {share.label} (config.data.mix)"] = problems_identity(share.source, share.split)
    if config.model.init:
        facts["first weights (config.model.init)"] = _weights_files(config.model.init)
    if config.model.lora_init:
        facts["first adapters (config.model.lora_init)"] = _adapter_files(config.model.lora_init)
    return facts | tokenizer_identity(config.model.tokenizer, config.model.chat) | python_identity(interpreter)


def problems_identity(source: Source, split: str) -> list[str]:
    """A hash of a split's problems, and one of the positions that `config.data`'s rules leave of them."""
    if source.name == MINI_CONTESTS:
        problems = [mini_contests.problem_at(split, 0, i) for i in range(_DRAWS)]
        return [f"hash {_hash(problem_json(problem).encode('ascii') for problem in problems)}"]
    if source.name == JSONL:
        facts = jsonl.identity(source.files[split])
    else:
        facts = [f"hash {_hash(text.encode() for text in shard_hashes(source.dir, split))}"]
    positions = source.positions.get(split)
    if positions is None:
        return facts
    return [*facts, f"{len(positions)} kept by config.data's rules", f"kept {_hash([json.dumps(positions).encode()])}"]


def python_identity(interpreter: Interpreter) -> dict[str, Sequence[str]]:
    """The version of the Python that runs programs, and what is installed for them."""
    installed = importlib.metadata.distributions(path=list(interpreter.packages)) if interpreter.packages else ()
    return {
        PYTHON: [interpreter.version],
        _PACKAGES: sorted({f"{package.metadata['Name']} {package.version}" for package in installed}),
    }


def tokenizer_identity(name: str, template: str = "") -> dict[str, Sequence[str]]:
    """The files that make a chat format: the tokenizer's, and that of a template beside it."""
    facts: dict[str, Sequence[str]] = {"tokenizer (config.model.tokenizer)": _tokenizer_files(name)}
    return facts | ({"chat template (config.model.chat)": [_file_fact(Path(template))]} if template else {})


def _tokenizer_files(name: str) -> list[str]:
    path = Path(name)
    if path.is_dir() or path.name == "tokenizer.json":
        folder = path if path.is_dir() else path.parent
        return [_file_fact(folder / file) for file in _TOKENIZER_FILES if (folder / file).is_file()]
    return [_file_fact(resolve(name, "" if path.suffix == ".gguf" else ".model", "model.tokenizer"))]


def _weights_files(name: str) -> list[str]:
    folder = Path(name)
    if folder.is_dir():
        return [_file_fact(path) for path in (folder / "config.json", *sorted(folder.glob("*.safetensors")))]
    return [_file_fact(resolve(name, "" if folder.suffix == ".gguf" else ".npz", "model.init"))]


def _adapter_files(name: str) -> list[str]:
    return [_file_fact(path) for file in (CONFIG, TENSORS) if (path := path_of(name) / file).is_file()]


def _file_fact(path: Path) -> str:
    state = path.stat()
    return f"{path.name} of {state.st_size} bytes, hash {_sampled_hash(path, state.st_size, state.st_mtime_ns)}"


@functools.lru_cache(maxsize=256)
def _sampled_hash(path: Path, size: int, changed: int) -> str:
    """Of the whole file; of one larger than what is read of it, its head and blocks spread evenly over the rest.

    Any other training run moves every tensor, so a sample tells models apart; a head of 16 MiB has all of a GGUF file's
    vocabulary and of a safetensors file's shapes.
    """
    with open(path, "rb") as file:
        if size <= _HEAD + _BLOCK * _BLOCKS:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
        digest = hashlib.sha256(file.read(_HEAD))
        for block in range(_BLOCKS):
            file.seek(_HEAD + (size - _HEAD - _BLOCK) * block // (_BLOCKS - 1))
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()[:16]


def _hash(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part + b"\0")
    return digest.hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Difference:
    """An input that is another now: the facts that held only before, and those that hold only now."""

    name: str
    before: tuple[str, ...]
    now: tuple[str, ...]

    @property
    def slight(self) -> bool:
        """Whether it is reported, not refused: another patch release of the same Python, which only fixes bugs."""
        minor = {version.rpartition(".")[0] for version in (*self.before, *self.now)}
        return self.name == PYTHON and len(minor) == 1

    def __str__(self) -> str:
        return f"{self.name}: {_listed(self.before)} before, {_listed(self.now)} now"


def _listed(facts: Sequence[str]) -> str:
    more = f" and {len(facts) - _NAMED} more" if len(facts) > _NAMED else ""
    return (", ".join(facts[:_NAMED]) or "none") + more


def differences(before: Inputs, now: Inputs) -> list[Difference]:
    """What differs of the inputs that both name: one that an older version didn't record can't be compared."""

    def of(name: str) -> Difference:
        facts_before, facts_now = before[name], now[name]
        removed = [fact for fact in facts_before if fact not in facts_now]
        added = [fact for fact in facts_now if fact not in facts_before]
        return Difference(name, tuple(removed), tuple(added))

    return [of(name) for name in now if name in before and list(before[name]) != list(now[name])]


def check_inputs(
    folder: Path, now: Inputs, *, begun: bool, mend: str, tell: Callable[[str], None], accept: bool = False
) -> bool:
    """Compares with what the folder has recorded, and records what there is now. Returns whether it was accepted.

    Args:
      begun: whether the folder holds results already; without any, whatever was recorded doesn't matter.
      mend: what to do about a difference: the end of the error's line.
      tell: called with one line for a slight or accepted difference, and for results without a record.
      accept: goes on over other inputs.

    Raises ConfigError, naming what differs, before and after.
    """
    path = folder / RECORD
    before = _recorded(path)
    if begun and before is None:
        tell(f"{folder} doesn't say what it was begun with (no {RECORD}): recorded as it is now")
    differing = differences(before or {}, now) if begun else []
    refused = [difference for difference in differing if not difference.slight]
    if refused and not accept:
        raise ConfigError(f"{folder} was begun with other inputs: {'; '.join(map(str, refused))}. {mend}")
    for difference in differing:
        tell(f"{folder} goes on with another input, {difference}")
    write_json(path, {name: list(facts) for name, facts in now.items()})
    return bool(refused)


def _recorded(path: Path) -> Inputs | None:
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): [str(fact) for fact in facts] for name, facts in record.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"{path} is not what a run wrote ({error}): remove it to go on without comparing") from error


def agreed(inputs: Sequence[Inputs]) -> Inputs:
    """The inputs that all processes of a job share. Raises ConfigError, naming the first process that differs."""
    for number, other_inputs in enumerate(inputs):
        if differing := [difference for difference in differences(inputs[0], other_inputs) if not difference.slight]:
            details = "; ".join(
                f"{d.name}: {_listed(d.before)} in process 0, {_listed(d.now)} in it" for d in differing
            )
            raise ConfigError(f"process {number} of this job has other inputs than process 0: {details}")
    return inputs[0]
