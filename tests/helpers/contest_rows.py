"""Rows in the layout of CodeContests' parquet release, and the same rows as JSON of the ContestProblem proto."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

TESTS = ("public_tests", "private_tests", "generated_tests")
_LANGUAGES = ("UNKNOWN_LANGUAGE", "PYTHON", "CPP", "PYTHON3", "JAVA")
_SOURCES = ("UNKNOWN_SOURCE", "CODECHEF", "CODEFORCES", "HACKEREARTH", "CODEJAM", "ATCODER", "AIZU")
_DIFFICULTIES = {0: "UNKNOWN_DIFFICULTY", 1: "EASY", 6: "EXTERNAL", 7: "A", 17: "K", 19: "L", 29: "V"}
_TEXTS = ("1 2\n", "", "a\0", "é\u2028\U0001f600\n", " \t\r\n", "5\n" * 50)


def row(name: str, **changes: Any) -> dict[str, Any]:
    """A row with every field filled, but for `changes`."""
    plain: dict[str, Any] = {
        "name": name,
        "description": f"Add the numbers of {name}.",
        "public_tests": {"input": ["1 2\n"], "output": ["3\n"]},
        "private_tests": {"input": ["2 2\n"], "output": ["4\n"]},
        "generated_tests": {"input": [], "output": []},
        "source": 2,
        "difficulty": 7,
        "solutions": {"language": [2, 3], "solution": ["int main() {}", "print(sum(map(int, input().split())))"]},
        "incorrect_solutions": {"language": [3, 1, 3], "solution": ["print(0)", "print 1", "print(2)"]},
        "cf_contest_id": 12,
        "cf_index": "A",
        "cf_points": 500.0,
        "cf_rating": 800,
        "cf_tags": ["math", "greedy"],
        "is_description_translated": False,
        "untranslated_description": "",
        "time_limit": {"seconds": 2, "nanos": 500_000_000},
        "memory_limit_bytes": 256_000_000,
        "input_file": "",
        "output_file": "",
    }
    return plain | changes


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows that differ in every field, with awkward texts, absent limits and absent tests among them."""
    rng = random.Random(seed)

    def tests(low: int) -> dict[str, list[str]]:
        chosen = [(rng.choice(_TEXTS), rng.choice(_TEXTS)) for _ in range(rng.randint(low, 6))]
        return {"input": [i for i, _ in chosen], "output": [o for _, o in chosen]}

    def programs() -> dict[str, list[Any]]:
        languages = [rng.randrange(5) for _ in range(rng.randint(0, 9))]
        return {"language": languages, "solution": [f"# {rng.random()}\n" for _ in languages]}

    none: dict[str, list[str]] = {"input": [], "output": []}
    limits = (None, {"seconds": 0, "nanos": 1}, {"seconds": 10, "nanos": 0}, {"seconds": 2, "nanos": 700_000_000})
    return [
        row(
            f"{i}_é",
            description=rng.choice(["Print any of them.", "Add.", "Ω"]) + f" {i}",
            public_tests=tests(1) if i % 5 else none,
            private_tests=tests(1) if i % 7 else none,
            generated_tests=tests(0),
            source=rng.randrange(7),
            difficulty=rng.choice(list(_DIFFICULTIES)),
            solutions=programs(),
            incorrect_solutions=programs(),
            cf_contest_id=rng.randrange(2000),
            cf_index=rng.choice(["", "B1"]),
            cf_rating=rng.randrange(3500),
            cf_tags=rng.choice([[], ["dp"], ["*special", "math"]]),
            is_description_translated=bool(rng.randrange(2)),
            time_limit=rng.choice(limits),
            memory_limit_bytes=rng.choice([0, 2**28, 2**33]),
            input_file=rng.choice(["", "in.txt"]),
            output_file=rng.choice(["", "out.txt"]),
        )
        for i in range(count)
    ]


def write_parquet(path: Path, written: Sequence[dict[str, Any]], group: int = 4) -> None:
    """Writes the rows in row groups of `group`."""
    texts = pa.struct([("input", pa.list_(pa.string())), ("output", pa.list_(pa.string()))])
    programs = pa.struct([("language", pa.list_(pa.int64())), ("solution", pa.list_(pa.string()))])
    kinds: dict[str, Any] = dict.fromkeys(TESTS, texts) | dict.fromkeys(("solutions", "incorrect_solutions"), programs)
    kinds |= dict.fromkeys(("source", "difficulty", "cf_contest_id", "memory_limit_bytes"), pa.int64())
    kinds |= {"cf_points": pa.float32(), "cf_rating": pa.int32(), "cf_tags": pa.list_(pa.string())}
    kinds |= {"is_description_translated": pa.bool_()}
    kinds |= {"time_limit": pa.struct([("seconds", pa.int64()), ("nanos", pa.int64())])}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in row("x")])
    pq.write_table(pa.Table.from_pylist(list(written), schema=schema), path, row_group_size=group)


def as_proto(r: dict[str, Any], *, camel: bool, names: bool = True) -> dict[str, Any]:
    """A row as protobuf's JSON mapping writes it: `camel` names or the proto's, enums as names or numbers."""

    def named(key: str) -> str:
        first, *rest = key.split("_")
        return first + "".join(word.capitalize() for word in rest) if camel else key

    def tests(kind: str) -> list[dict[str, str]]:
        # protobuf leaves out what is at its default where the field has no presence; either is allowed to be read
        return [{"input": i, "output": o} for i, o in zip(r[kind]["input"], r[kind]["output"])]

    def programs(kind: str) -> list[dict[str, Any]]:
        return [
            {"language": _LANGUAGES[language] if names else language, "solution": text}
            for language, text in zip(r[kind]["language"], r[kind]["solution"])
        ]

    message: dict[str, Any] = {kind: tests(kind) for kind in TESTS}
    message |= {kind: programs(kind) for kind in ("solutions", "incorrect_solutions")}
    proto_source = r["source"] + (r["source"] >= 5)  # 5 is reserved in the proto
    message["source"] = _SOURCES[r["source"]] if names else proto_source
    message["difficulty"] = _DIFFICULTIES.get(r["difficulty"], "") if names else r["difficulty"]
    if not message["difficulty"]:
        message["difficulty"] = r["difficulty"]
    message["memory_limit_bytes"] = str(r["memory_limit_bytes"])
    if (limit := r["time_limit"]) is not None:
        fraction = f".{limit['nanos']:09d}".rstrip("0") if limit["nanos"] else ""
        message["time_limit"] = f"{limit['seconds']}{fraction}s"
    copied = (
        "name", "description", "cf_contest_id", "cf_index", "cf_points", "cf_rating", "cf_tags",
        "is_description_translated", "untranslated_description", "input_file", "output_file",
    )  # fmt: skip
    message |= {name: r[name] for name in copied if r[name]}
    return {named(key): value for key, value in message.items()}
