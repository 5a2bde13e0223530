"""TFDS records of problems: the features, `Problem` to bytes, and a TFDS example back to a `Problem`.

TFDS has no optional features: a time limit (nanoseconds) or memory limit of 0 stands for none. Text comes back as
bytes.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from rlef_jax.data.code_contests.release import time_limit_s
from rlef_jax.errors import ConfigError
from rlef_jax.types import Problem, TestCase

_TESTS = ("public_tests", "private_tests", "generated_tests")
_TEXTS = ("source", "difficulty", "cf_index", "input_file", "output_file")  # tags that are text
_INTEGERS = ("cf_rating", "cf_contest_id")


def library(name: str) -> Any:
    """Imports a module of TFDS or ArrayRecord. Raises ConfigError if it isn't installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"CodeContests takes {name}: pip install 'rlef-jax[data]' ({error})") from error


@functools.cache
def features() -> Any:
    """The FeaturesDict of a problem."""
    f = library("tensorflow_datasets").features
    numpy = library("numpy")
    tests = {kind: f.Sequence({"input": f.Text(), "output": f.Text()}) for kind in _TESTS}
    programs = {kind: f.Sequence(f.Text()) for kind in ("solutions", "incorrect_solutions", "cf_tags")}
    texts = {name: f.Text() for name in ("name", "description", *_TEXTS)}
    integers = {name: numpy.int64 for name in ("time_limit_ns", "memory_limit_bytes", *_INTEGERS)}
    return f.FeaturesDict(tests | programs | texts | integers | {"is_description_translated": numpy.bool_})


@functools.cache
def _serializer() -> Any:
    serializers = library("tensorflow_datasets.core.example_serializer")
    return serializers.ExampleSerializer(features().get_serialized_info())


def to_bytes(problem: Problem) -> bytes:
    """The serialised record. The problem must have the tags that `release` gives."""
    tags = problem.tags
    example: dict[str, Any] = {kind: _pairs(getattr(problem, kind)) for kind in _TESTS}
    example |= {name: _texts(getattr(problem, name)) for name in ("solutions", "incorrect_solutions")}
    example |= {name: getattr(problem, name).encode() for name in ("name", "description")}
    example |= {name: tags[name].encode() for name in _TEXTS} | {name: tags[name] for name in _INTEGERS}
    example["cf_tags"] = _texts(tags["cf_tags"])
    example["is_description_translated"] = tags["is_description_translated"]
    example["time_limit_ns"] = round((problem.time_limit_s or 0) * 1e9)
    example["memory_limit_bytes"] = problem.memory_limit_bytes or 0
    # `features().encode_example` gives the same, three times slower with thousands of tests.
    # deterministic: the order of a protobuf map otherwise differs between processes.
    return _serializer().get_tf_example(example).SerializeToString(deterministic=True)


def _pairs(tests: Sequence[TestCase]) -> dict[str, Any]:
    return {"input": _texts([t.input for t in tests]), "output": _texts([t.output for t in tests])}


def _texts(texts: Sequence[str]) -> Any:
    numpy = library("numpy")
    # dtype object: an array of fixed-length bytes would drop trailing zeros of a text.
    return numpy.array([text.encode() for text in texts], dtype=object)


def from_example(example: Mapping[str, Any], identity: str) -> Problem:
    """The problem of an example from a TFDS data source. `identity` becomes its tag "id"."""

    def tests(kind: str) -> tuple[TestCase, ...]:
        entry = example[kind]
        return tuple(TestCase(i.decode(), o.decode()) for i, o in zip(entry["input"], entry["output"]))

    tags: dict[str, Any] = {"id": identity}
    tags |= {name: example[name].decode() for name in _TEXTS} | {name: int(example[name]) for name in _INTEGERS}
    tags["cf_tags"] = tuple(text.decode() for text in example["cf_tags"])
    tags["is_description_translated"] = bool(example["is_description_translated"])
    public, private, generated = map(tests, _TESTS)
    return Problem(
        example["name"].decode(),
        example["description"].decode(),
        public,
        private,
        generated,
        tuple(text.decode() for text in example["solutions"]),
        tuple(text.decode() for text in example["incorrect_solutions"]),
        time_limit_s(int(example["time_limit_ns"])),
        int(example["memory_limit_bytes"]) or None,
        tags,
    )
