"""Hardware that programs are compiled for, described by files in `targets/`: a card's speeds and memory, its compiler's
description, and devices that need not be there."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("targets")
CPU = "cpu"


@dataclasses.dataclass(frozen=True)
class Card:
    """A device: peak operations per second, memory in bytes, bandwidths in bytes per second.

    `link` is between `node` devices, `network` between nodes; `usable` is the fraction of the memory that a run has.
    """

    flops: float
    memory: float
    memory_bandwidth: float
    link: float
    network: float
    node: int = 8
    usable: float = 1.0

    @property
    def limit(self) -> float:
        """Bytes that a run may use."""
        return self.memory * self.usable


@dataclasses.dataclass(frozen=True)
class Target:
    """What programs are compiled for: `platform` is "cuda" or "tpu", `topology` the form of a TPU slice's name."""

    name: str
    platform: str
    card: Card
    topology: str = ""

    def devices(self, count: int) -> list[Any]:
        """At least `count` described devices, nodes filled one after the other.

        Only in a process with the platform's plugin and flags (`environment.py`).
        """
        from jax.experimental import topologies

        if self.platform == "cuda":
            text = (FOLDER / f"{self.name}.txtpb").read_text()
            nodes = -(-count // self.card.node)
            shape = f"1x{nodes}x{self.card.node}" if nodes > 1 else f"1x1x{count}"
            found = topologies.get_topology_desc(platform="cuda", target_config=text, topology=shape)
        else:
            axes = self.topology.count("{")
            sizes = dict(zip("xyz", torus(count, axes)))
            found = topologies.get_topology_desc(self.topology.format(**sizes), platform=self.platform)
        return list(found.devices)


def torus(count: int, axes: int) -> tuple[int, ...]:
    """Sizes of a TPU slice of at least `count` chips: powers of two, as equal as they can be, ascending.

    128 chips of three axes are (4, 4, 8). A slice has at least a host's four chips.
    """
    exponent = max(2, math.ceil(math.log2(count)))
    return tuple(2 ** (exponent // axes + (axis >= axes - exponent % axes)) for axis in range(axes))


def names() -> list[str]:
    """Of all targets but "cpu"."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read(name: str) -> Target:
    """The target of this name. Raises KeyError for one that isn't there."""
    path = FOLDER / f"{name}.toml"
    if not path.is_file():
        raise KeyError(name)
    values = tomllib.loads(path.read_text())
    platform, topology = values.pop("platform"), values.pop("topology", "")
    return Target(name, platform, Card(**values), topology)


def card(name: str) -> Card:
    """The card of the target of this name."""
    return read(name).card
