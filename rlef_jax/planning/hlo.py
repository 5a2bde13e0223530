"""Reads a compiled program's text (HLO as XLA prints it): its computations, how often each runs, shapes and sizes.

What is computed, moved and exchanged is read from here by `work.py`, `exchanges.py` and `schedule.py`. The text of a
GPU's or TPU's program is in schedule order: its instructions run in the order in which they stand.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

_BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "s16": 2, "u16": 2, "bf16": 2,
    "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8,
}  # fmt: skip
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .* )?\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_SHAPE = re.compile(r"\b(" + "|".join(_BYTES) + r")\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations)=\{?((?:%[\w.\-]+(?:, )?)+)\}?")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONTROL = ("while", "conditional", "call")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: NAME = SHAPE KIND(REST. `rest` holds operands and attributes."""

    name: str
    shape: str
    kind: str
    rest: str
    root: bool = False

    @functools.cached_property
    def arguments(self) -> tuple[str, ...]:
        """Names of the operands, in order."""
        depth = 1
        for end, character in enumerate(self.rest):
            depth += {"(": 1, ")": -1}.get(character, 0)
            if not depth:
                return tuple(re.findall(r"%([\w.\-]+)", self.rest[:end]))
        return tuple(re.findall(r"%([\w.\-]+)", self.rest))

    @functools.cached_property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it runs or applies."""
        return tuple(name for match in _CALLED.finditer(self.rest) for name in re.findall(r"%([\w.\-]+)", match[1]))

    @property
    def trips(self) -> float | None:
        """Of a loop: how often its body runs, if that is known."""
        match = _TRIPS.search(self.rest)
        return float(match[1]) if match else None

    @property
    def target(self) -> str:
        """Of a custom call or a kernel's fusion: what is called, "" for others."""
        match = re.search(r'custom_call_target="([^"]*)"', self.rest) or re.search(
            r'"fusion_backend_config":\{"kind":"([^"]*)"', self.rest
        )
        return match[1] if match else ""


@dataclasses.dataclass(frozen=True)
class Module:
    """A program: {computation: instructions in order}, and the name of the one that is run."""

    computations: Mapping[str, Sequence[Instruction]]
    entry: str
    head: str

    @functools.cached_property
    def shapes(self) -> dict[str, dict[str, str]]:
        """{computation: {instruction: shape}}."""
        return {name: {i.name: i.shape for i in body} for name, body in self.computations.items()}

    @functools.cached_property
    def fused(self) -> frozenset[str]:
        """Computations whose values never reach memory: bodies of fusions and the functions of reductions."""
        callers = (i for body in self.computations.values() for i in body if i.kind not in _CONTROL)
        return frozenset(called for i in callers for called in i.called)

    @functools.cached_property
    def aliased(self) -> frozenset[int]:
        """Numbers of the entry's parameters whose memory a result takes over: what donation has come to."""
        match = re.search(r"input_output_alias=\{(.*?\)) \}", self.head)
        return frozenset(int(n) for n in re.findall(r": \((\d+),", match[1])) if match else frozenset()

    def runs(self, open_trips: float = 1.0) -> dict[str, tuple[float, tuple[float, ...]]]:
        """{computation: (number of runs, trips of the loops around it, outermost first)}, of what the entry reaches.

        `open_trips` is assumed for loops without a known count. A computation in several loops has those of the first.
        """
        times: dict[str, float] = defaultdict(float)
        loops: dict[str, tuple[float, ...]] = {}

        def visit(name: str, count: float, around: tuple[float, ...]) -> None:
            times[name] += count
            loops.setdefault(name, around)
            for i in self.computations[name]:
                loop, known = i.kind == "while", i.trips
                trips = (open_trips if known is None else known) if loop else 1.0
                inside = (*around, trips) if loop else around
                for called in i.called:
                    visit(called, count * trips, inside)

        visit(self.entry, 1.0, ())
        return {name: (count, loops[name]) for name, count in times.items()}


def parse(text: str) -> Module:
    """The module of `compiled.as_text()`. Raises ValueError for a text without an entry computation."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = computations.setdefault(match[2], [])
            entry = match[2] if match[1] else entry
        elif current is not None and (match := _INSTRUCTION.match(line)):
            current.append(Instruction(match[2], match[3], match[4], match[5], bool(match[1])))
    if not entry:
        raise ValueError(f"no entry computation in the text that begins {text[:80]!r}")
    return Module(computations, entry, text.partition("\n")[0])


def arrays(shape: str) -> list[tuple[str, tuple[int, ...]]]:
    """(dtype, dimensions) of all arrays of a shape, in order."""
    return [(kind, tuple(int(n) for n in dims.split(",") if n)) for kind, dims in _SHAPE.findall(shape)]


def sizes(shape: str) -> tuple[int, ...]:
    """Dimensions of the first array of a shape."""
    return next((dims for _, dims in arrays(shape)), ())


def size_of(shape: str, float_bytes: int = 4) -> float:
    """Bytes of all arrays of a shape; `float_bytes` are counted for a float32 value."""
    widths = _BYTES | {"f32": float_bytes}
    return float(sum(widths[kind] * math.prod(dims) for kind, dims in arrays(shape)))


def walk(module: Module) -> Iterator[tuple[str, Instruction]]:
    """(computation, instruction) of all that the entry reaches."""
    for name in module.runs():
        for i in module.computations[name]:
            yield name, i
