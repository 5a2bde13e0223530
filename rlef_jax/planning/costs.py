"""Estimates the time of a run's programs on given hardware, part by part; `schedule.py` follows their order.

Matrix products take operations / (peak * MFU), everything else bytes read and written / memory bandwidth. An exchange
takes the bytes that a device sends / its link's bandwidth: the node's link if all its devices are in one node, else the
network. Operations and bytes come from the compiled programs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import jax

from rlef_jax.model.parameters import count_params, describe
from rlef_jax.model.transformer import ModelConfig
from rlef_jax.planning.exchanges import Collective
from rlef_jax.planning.target import Card
from rlef_jax.planning.work import Work


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Seconds of a program on a device: matrix products, other memory traffic, exchanges without overlap."""

    compute: float
    memory: float
    exchange: float

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.compute + other.compute, self.memory + other.memory, self.exchange + other.exchange)

    def __mul__(self, times: float) -> Seconds:
        return Seconds(self.compute * times, self.memory * times, self.exchange * times)

    @property
    def without_exchange(self) -> float:
        """Seconds without exchanges."""
        return self.compute + self.memory

    @property
    def total(self) -> float:
        """Seconds if nothing overlaps: an upper bound."""
        return self.without_exchange + self.exchange


def exchange_seconds(collectives: Iterable[Collective], card: Card, share: float) -> float:
    """Seconds of all exchanges in sequence, at `share` of the links' bandwidth."""
    return sum(c.bytes / ((card.link if c.span <= card.node else card.network) * share) for c in collectives)


def training_seconds(work: Work, card: Card, mfu: float, share: float) -> Seconds:
    """Seconds of a training program's work; `mfu` and `share` are the fractions of peak and bandwidths reached."""
    return Seconds(
        work.flops / (card.flops * mfu),
        work.bytes / (card.memory_bandwidth * share),
        exchange_seconds(work.collectives, card, share),
    )


def flops_per_token(cfg: ModelConfig, length: int, action_share: float) -> float:
    """Operations per token of a forward pass over rows of `length` tokens, counted without compiling.

    Counts products with weights, attention over half of the square or what a sliding window leaves of it, and the
    output layer for actions only.
    """
    layers = _numbers_of_matrices(cfg)
    windows = [min(kind.window or length, length) for kind in cfg.layer_kinds]
    attention = sum(window * (2 - window / length) for window in windows) * cfg.n_heads * cfg.d_head
    return 2.0 * (layers + attention + action_share * cfg.vocab_size * cfg.d_model)


def training_flops_per_token(cfg: ModelConfig, length: int, action_share: float) -> float:
    """Operations per token of a forward and a backward pass, nothing computed twice: three times as many as those of
    the forward pass, less the gradients of weights that aren't trained."""
    forward = flops_per_token(cfg, length, action_share)
    if cfg.lora is None:
        return 3 * forward
    return 3 * forward - 2.0 * (_numbers_of_matrices(cfg.base) + action_share * cfg.vocab_size * cfg.d_model)


def trained_share(cfg: ModelConfig) -> float:
    """Which share of a model's numbers is trained, and travels to a sampler: all, or its adapters."""
    return 1.0 if cfg.lora is None else 1.0 - count_params(cfg.base) / count_params(cfg)


def _numbers_of_matrices(cfg: ModelConfig) -> int:
    return sum(math.prod(p.shape) for p in jax.tree.leaves(describe(cfg)["layers"]) if p.inputs)
