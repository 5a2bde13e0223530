"""Walks a compiled program in its schedule's order: which exchange is hidden behind which arithmetic.

Two queues, as on a card: arithmetic runs in the order of the text, exchanges in the order in which they start. An
asynchronous exchange is waited for where its end stands, another where it stands.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rlef_jax.planning.exchanges import Exchange, read_exchanges
from rlef_jax.planning.hlo import Instruction, Module
from rlef_jax.planning.target import Card
from rlef_jax.planning.work import bytes_moved, flops_of


@dataclasses.dataclass(frozen=True)
class Timeline:
    """Seconds of one run of a program on a device.

    `busy` is arithmetic and memory traffic, `exchange` all exchanges, `exposed` the time in which arithmetic waits for
    one. The program takes `busy + exposed`.
    """

    busy: float = 0.0
    exchange: float = 0.0
    exposed: float = 0.0

    def __add__(self, other: Timeline) -> Timeline:
        return Timeline(self.busy + other.busy, self.exchange + other.exchange, self.exposed + other.exposed)

    def __mul__(self, times: float) -> Timeline:
        return Timeline(self.busy * times, self.exchange * times, self.exposed * times)

    @property
    def total(self) -> float:
        """Seconds from begin to end."""
        return self.busy + self.exposed


@dataclasses.dataclass(frozen=True)
class Overlap:
    """An asynchronous exchange and what stands between its start and its end: matrix products' and kernels' names, and
    seconds of all arithmetic there."""

    exchange: Exchange
    over: tuple[str, ...]
    seconds: float
    between: float


@dataclasses.dataclass(frozen=True)
class Speeds:
    """A card and the fractions of its peak (`mfu`) and bandwidths (`share`) that are reached."""

    card: Card
    mfu: float = 0.4
    share: float = 0.8

    def seconds_of(self, i: Instruction, module: Module, shapes: dict[str, str], float_bytes: int) -> float:
        """Of an instruction: the longer of its arithmetic, a fusion's body included, and its traffic."""
        bodies = i.called if i.kind in ("fusion", "fusion-start") else ()
        flops = flops_of(i, shapes)
        flops += sum(flops_of(part, module.shapes[name]) for name in bodies for part in module.computations[name])
        moved = bytes_moved(i, module, shapes, float_bytes)
        return max(flops / (self.card.flops * self.mfu), moved / (self.card.memory_bandwidth * self.share))

    def seconds_of_exchange(self, e: Exchange) -> float:
        """Of one exchange over the node's link, or over the network if it leaves the node."""
        return e.bytes / ((self.card.link if e.span <= self.card.node else self.card.network) * self.share)


def timeline(
    module: Module,
    mesh_shape: Sequence[int],
    axes: Sequence[str],
    speeds: Speeds,
    *,
    open_trips: float = 1.0,
    float_bytes: int = 4,
) -> Timeline:
    """Seconds of a program; other arguments as in `work.read_work`."""
    return _walked(module, mesh_shape, axes, speeds, open_trips, float_bytes)[0]


def overlaps(
    module: Module, mesh_shape: Sequence[int], axes: Sequence[str], speeds: Speeds, *, open_trips: float = 1.0
) -> list[Overlap]:
    """A program's asynchronous exchanges, those with most seconds first."""
    found = _walked(module, mesh_shape, axes, speeds, open_trips, 4)[1]
    return sorted(found, key=lambda o: -o.seconds * o.exchange.times)


def _walked(
    module: Module, mesh_shape: Sequence[int], axes: Sequence[str], speeds: Speeds, open_trips: float, float_bytes: int
) -> tuple[Timeline, list[Overlap]]:
    exchanges = read_exchanges(module, mesh_shape, axes, open_trips=open_trips, float_bytes=float_bytes)
    by_place = {(e.computation, e.name): e for e in exchanges}
    done: dict[str, Timeline] = {}
    found: list[Overlap] = []

    def walk(name: str) -> Timeline:
        if name in done:
            return done[name]
        clock, line, sent, waited = 0.0, 0.0, 0.0, 0.0  # when arithmetic and exchanges so far have ended
        pending: dict[str, tuple[float, Exchange, float, list[str]]] = {}
        shapes = module.shapes[name]
        for i in module.computations[name]:
            if e := by_place.get((name, i.name)):
                seconds = speeds.seconds_of_exchange(e)
                line = max(clock, line) + seconds
                sent += seconds
                if e.asynchronous:
                    pending[i.name] = (line, e, clock, [])
                else:
                    waited += line - clock
                    clock = line
            elif i.kind.endswith("-done") and (start := next((a for a in i.arguments if a in pending), None)):
                ends, e, begun, over = pending.pop(start)
                found.append(Overlap(e, tuple(over), speeds.seconds_of_exchange(e), clock - begun))
                waited += max(0.0, ends - clock)
                clock = max(clock, ends)
            elif i.kind.endswith("-update") and (start := next((a for a in i.arguments if a in pending), None)):
                pending[i.name] = pending.pop(start)
            elif i.kind in ("while", "conditional", "call"):
                inside = _nested(i, walk, open_trips)
                clock, sent, waited = clock + inside.total, sent + inside.exchange, waited + inside.exposed
                for *_, over in pending.values():
                    over.append(i.name)
            elif seconds := speeds.seconds_of(i, module, shapes, float_bytes):
                clock += seconds
                for *_, over in pending.values():
                    over.append(i.name)
        done[name] = Timeline(clock - waited, sent, waited)
        return done[name]

    return walk(module.entry), found


def _nested(i: Instruction, walk: object, open_trips: float) -> Timeline:
    """Of a loop all its trips, of a conditional its longest branch."""
    assert callable(walk)
    parts: list[Timeline] = [walk(name) for name in i.called]
    if i.kind == "conditional":
        return max(parts, key=lambda part: part.total)
    once = sum(parts, Timeline())
    known = i.trips
    return once * ((open_trips if known is None else known) if i.kind == "while" else 1.0)
