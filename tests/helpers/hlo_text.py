"""Reading a compiled program's text: what each instruction takes and gives, in bytes, and who touches an array."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8}
_BYTES |= {"s64": 8, "u64": 8}
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_LINE = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
# What moves no bytes.
FREE = ("parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all", "while")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: `arrays` are the (dtype, shape) that it gives, `inputs` the names of its operands, `rest` the text."""

    name: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    opcode: str
    inputs: tuple[str, ...]
    rest: str

    @property
    def bytes(self) -> int:
        return sum(_BYTES[dtype] * math.prod(shape) for dtype, shape in self.arrays)

    @property
    def calls(self) -> str:
        found = re.search(r"calls=%?([\w.\-]+)", self.rest)
        return found.group(1) if found else ""


Program = dict[str, dict[str, Instruction]]


def read(text: str) -> Program:
    """{computation: {name: instruction}}; the entry's is under "ENTRY"."""
    found: Program = {}
    current: dict[str, Instruction] = {}
    for line in text.splitlines():
        if line.endswith("{") and "->" in line:
            name = "ENTRY" if line.startswith("ENTRY") else re.match(r"\s*%?([\w.\-]+)", line).group(1)
            current = found[name] = {}
        elif match := _LINE.match(line):
            name, shape, opcode, rest = match.groups()
            arrays = tuple(
                (dtype, tuple(int(n) for n in sizes.split(",") if n))
                for dtype, sizes in _ARRAY.findall(shape)
                if dtype in _BYTES
            )
            inputs = tuple(re.findall(r"%([\w.\-]+)", rest.split(")")[0])) if opcode != "constant" else ()
            current[name] = Instruction(name, arrays, opcode, inputs, rest)
    return found


def outside_fusions(program: Program) -> Iterator[tuple[dict[str, Instruction], Instruction]]:
    """(its computation, instruction) of each that runs by itself."""
    fused = {i.calls for instructions in program.values() for i in instructions.values() if i.opcode == "fusion"}
    for name, instructions in program.items():
        if name not in fused:
            for instruction in instructions.values():
                yield instructions, instruction


def copies_of(program: Program, shape: tuple[int, ...]) -> list[str]:
    """Instructions that give an array of this shape or as large a one, or that take one of it, and neither only write
    some of it in place nor only gather from it, and aren't a kernel that reads it."""
    size, found = math.prod(shape), []
    for around, one in outside_fusions(program):
        if one.opcode in FREE:
            continue
        gives = any(math.prod(other) >= size for _, other in one.arrays)
        taken = [name for name in one.inputs if name in around and any(s == shape for _, s in around[name].arrays)]
        if not gives and not taken:
            continue
        body = program.get(one.calls, {})
        by_kind = {inner.opcode for inner in body.values() if _touches(body, inner, shape)}
        in_place = one.opcode == "fusion" and by_kind <= {"parameter", "scatter", "gather", "bitcast", "tuple"}
        kernel = one.opcode == "custom-call" and "paged_attention" in one.rest and not gives
        if not (in_place or kernel):
            found.append(f"{one.opcode} {one.name} {one.arrays}")
    return found


def _touches(body: dict[str, Instruction], one: Instruction, shape: tuple[int, ...]) -> bool:
    arrays = [*one.arrays, *(array for name in one.inputs if name in body for array in body[name].arrays)]
    return any(math.prod(other) >= math.prod(shape) for _, other in arrays)


def traffic(program: Program, computation: str, cache: tuple[int, ...]) -> int:
    """Bytes that a computation's instructions read and write, each on its own. Of arrays with the cache's shape nothing
    is counted, of what is gathered from and updated in place no more than what is read and written."""
    instructions, total = program[computation], 0
    for one in instructions.values():
        if one.opcode in FREE:
            continue
        body = program.get(one.calls, {})
        inner = {i.opcode for i in body.values()}
        results = [array for array in one.arrays if array[1] != cache]
        given = sum(_BYTES[dtype] * math.prod(shape) for dtype, shape in results)
        read_in = 0
        for name in dict.fromkeys(one.inputs):
            if name not in instructions:
                continue
            source = instructions[name]
            if source.arrays and source.arrays[0][1] == cache:
                continue
            if "dynamic-update-slice" in inner and source.arrays == one.arrays:
                given = 0  # in place: the slice, which is as large as what else is read
                continue
            read_in += min(source.bytes, given) if "gather" in inner and source.bytes > 2**26 else source.bytes
        total += given + read_in
    return total


def loop_body(program: Program) -> str:
    """The name of the body of the only loop."""
    [loop] = [one for _, one in outside_fusions(program) if one.opcode == "while"]
    return re.search(r"body=%?([\w.\-]+)", loop.rest).group(1)
