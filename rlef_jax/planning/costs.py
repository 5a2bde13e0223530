"""From a run's programs to bytes, seconds and device hours, on stated hardware.

Products take their operations over the card's peak times the share of it that they reach (MFU), and everything else
what it reads and writes over the memory's bandwidth. An exchange takes what a device sends over its link: the one
within a node where its devices lie in one, else the network. A decoding step reads all weights and the cache once. All
but shares and bandwidths comes from the compiled programs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import jax

from rlef_jax.model.parameters import describe
from rlef_jax.model.transformer import ModelConfig
from rlef_jax.planning.hlo import Collective
from rlef_jax.planning.programs import Program


@dataclasses.dataclass(frozen=True)
class Card:
    """A device: peak operations a second, bytes of memory, and bytes a second of memory, node link and network."""

    flops: float
    memory: float
    memory_bandwidth: float
    link: float
    network: float
    node: int = 8  # devices of a node


# NVIDIA's data sheets (SXM): dense bfloat16, NVLink in one direction, one 400 Gb/s adapter a card.
CARDS = {
    "h100": Card(989e12, 80e9, 3.35e12, 450e9, 50e9),
    "h200": Card(989e12, 141e9, 4.8e12, 450e9, 50e9),
    "a100": Card(312e12, 80e9, 2.04e12, 300e9, 25e9),
}


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Time of a program on a device: products, what else moves through memory, and exchanges if nothing hides them."""

    compute: float
    memory: float
    exchange: float

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.compute + other.compute, self.memory + other.memory, self.exchange + other.exchange)

    def __mul__(self, times: float) -> Seconds:
        return Seconds(self.compute * times, self.memory * times, self.exchange * times)

    @property
    def own(self) -> float:
        """Without exchanges."""
        return self.compute + self.memory

    @property
    def total(self) -> float:
        """Nothing hidden: an upper bound."""
        return self.own + self.exchange


def exchange_seconds(collectives: Iterable[Collective], card: Card, share: float) -> float:
    """Time of exchanges one after the other, each link at `share` of its bandwidth."""
    return sum(c.bytes / ((card.link if c.span <= card.node else card.network) * share) for c in collectives)


def training_seconds(program: Program, card: Card, mfu: float, share: float) -> Seconds:
    """Time of a training program."""
    return Seconds(
        program.work.flops / (card.flops * mfu),
        program.work.bytes / (card.memory_bandwidth * share),
        exchange_seconds(program.work.collectives, card, share),
    )


def decode_seconds(program: Program, card: Card, share: float) -> float:
    """Time of a decoding step: its products or its reading, whichever is slower, and its exchanges."""
    read = program.arguments / (card.memory_bandwidth * share)
    return max(program.work.flops / card.flops, read) + exchange_seconds(program.work.collectives, card, share)


def flops_per_token(cfg: ModelConfig, length: int, action_share: float) -> float:
    """Of a forward pass over rows of `length` tokens, counted without compiling: products with weights, attention over
    half of the square, the output layer for actions only. A training step does three times as many, and what it makes
    again."""
    layers = sum(math.prod(p.shape) for p in jax.tree.leaves(describe(cfg)["layers"]) if p.inputs)
    attention = length * cfg.n_heads * cfg.d_head
    return 2.0 * (layers + cfg.n_layers * attention + action_share * cfg.vocab_size * cfg.d_model)
