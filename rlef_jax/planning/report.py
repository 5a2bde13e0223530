"""A plan: a run's programs and assumptions, its derived costs, and their table."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from rlef_jax.model.parameters import count_params
from rlef_jax.model.transformer import ModelConfig
from rlef_jax.planning.costs import (
    Card,
    Seconds,
    decode_seconds,
    exchange_seconds,
    flops_per_token,
    training_seconds,
)
from rlef_jax.planning.programs import Program

_GIB = 2.0**30


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """Assumptions of a plan: the hardware, the fractions of its peak that are reached, the sizes of an iteration."""

    card: Card
    mfu: float
    share: float
    measured: bool
    length: int
    action_share: float
    updates: int
    microbatches: int
    rows: int
    iterations: int
    group: int
    sampler_tensor: int
    sampler_devices: int

    @property
    def tokens(self) -> int:
        """Token slots per iteration."""
        return self.updates * self.microbatches * self.rows * self.length


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run's programs ("gradients", "apply", "score", "decode"), sizes and assumptions."""

    cfg: ModelConfig
    mesh: Mapping[str, int]
    programs: Mapping[str, Program]
    separate_critic: bool
    param_bytes: int
    compile_seconds: float
    assumed: Assumptions

    @property
    def devices(self) -> int:
        """The number of training devices."""
        return self.mesh["data"] * self.mesh["fsdp"] * self.mesh["tensor"]

    @property
    def networks(self) -> int:
        """The number of transformers that are trained."""
        return 2 if self.separate_critic else 1

    def memory(self) -> dict[str, float]:
        """{content: bytes per device} while an update's gradients are computed."""
        gradients = self.programs["gradients"]
        weights = gradients.results  # gradients have the weights' shapes and shardings
        return {
            "weights": float(weights),
            "optimizer": float(self.programs["apply"].arguments - 2 * weights),
            "gradients": float(weights),
            "reference policy": weights / self.networks,
            "activations and other temporary memory": float(gradients.temporary),
        }

    def sampler_memory(self) -> float:
        """Bytes per sampling device: weights, cache and temporary memory."""
        decode = self.programs["decode"]
        return float(decode.arguments + decode.results + decode.temporary)

    def seconds(self) -> dict[str, Seconds]:
        """{part of an iteration: its time on the training devices}."""
        a = self.assumed
        names = ("gradients", "score", "apply")
        times = {name: training_seconds(self.programs[name], a.card, a.mfu, a.share) for name in names}
        passes = a.updates * a.microbatches
        return {
            "old log-probabilities, values": times["score"] * passes,
            "reference log-probabilities": times["score"] * (passes / self.networks),
            "gradients": times["gradients"] * a.updates,
            "optimizer": times["apply"] * a.updates,
        }

    def sampling_seconds(self) -> dict[str, float]:
        """Seconds of an iteration's sampling on all sampling devices: decoding and prefill of prompts."""
        a = self.assumed
        replicas = a.sampler_devices / a.sampler_tensor
        # Tokens of an episode are sampled in sequence, however many devices there are.
        steps = a.length * a.action_share * max(1.0, a.tokens / a.length / replicas / a.group)
        prompts = a.tokens * (1 - a.action_share) * flops_per_token(self.cfg, a.length, 0.0)
        return {
            "decoding": steps * decode_seconds(self.programs["decode"], a.card, a.share),
            "prompts": prompts / (a.card.flops * a.mfu * a.sampler_devices),
        }


def table(plan: Plan, title: str = "") -> str:
    """The whole plan as text."""
    return "\n".join([title, *_model(plan), "", *_memory(plan), "", *_work(plan), "", *_time(plan), "", *_notes(plan)])


def _model(plan: Plan) -> Iterator[str]:
    count, a = count_params(plan.cfg), plan.assumed
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    yield f"{count / 1e9:.3g} B parameters, {plan.networks} trained network(s); mesh {mesh} = {plan.devices} devices"
    yield (
        f"an iteration: {a.updates} updates of {a.microbatches} micro-batches of {a.rows} rows of {a.length} tokens;"
        f" compiled in {plan.compile_seconds:.0f} s"
    )


def _memory(plan: Plan) -> Iterator[str]:
    card = plan.assumed.card.memory
    parts = plan.memory()
    yield f"{'memory of a training device':<44}{'GiB':>10}"
    for name, size in parts.items():
        yield f"  {name:<42}{size / _GIB:>10.3g}"
    total = sum(parts.values())
    yield f"  {'total':<42}{total / _GIB:>10.3g}  {total / card:.0%} of the card's {card / _GIB:.1f}"
    yield f"{'memory of a sampling device':<44}{plan.sampler_memory() / _GIB:>10.3g}  {plan.assumed.group} rows at once"


def _work(plan: Plan) -> Iterator[str]:
    a, gradients = plan.assumed, plan.programs["gradients"]
    tokens = a.microbatches * a.rows * a.length / plan.devices
    by_hand = 3 * flops_per_token(plan.cfg, a.length, a.action_share) * plan.networks
    yield f"{'operations of a token, forward and backward':<44}{'GFLOP':>10}"
    yield f"  {'by hand, nothing computed twice':<42}{by_hand / 1e9:>10.3g}"
    yield f"  {'compiled products, loops as they run':<42}{gradients.work.flops / tokens / 1e9:>10.3g}"
    yield f"  {'by XLA, which counts a loop once':<42}{gradients.xla_flops / tokens / 1e9:>10.3g}"
    yield f"{'sent by a device in an update':<30}{'over':<20}{'times':>8}{'GiB':>9}{'s':>8}"
    for name in ("gradients", "apply"):
        for c in plan.programs[name].work.collectives[:8]:
            seconds = exchange_seconds([c], a.card, a.share)
            over = "+".join(c.axes) + (" (node)" if c.span <= a.card.node else "")
            yield f"  {name + ': ' + c.kind:<28}{over:<20}{c.count:>8.0f}{c.bytes / _GIB:>9.2f}{seconds:>8.3f}"


def _time(plan: Plan) -> Iterator[str]:
    a, parts, sampling = plan.assumed, plan.seconds(), plan.sampling_seconds()
    total = sum(parts.values(), Seconds(0.0, 0.0, 0.0))
    yield f"{'time of an iteration, s':<34}{'products':>10}{'memory':>9}{'exchanges':>11}{'of all':>8}"
    for name, s in parts.items():
        yield f"  {name:<32}{s.compute:>10.2f}{s.memory:>9.2f}{s.exchange:>11.2f}{s.total / total.total:>8.0%}"
    sums = f"{total.compute:>10.2f}{total.memory:>9.2f}{total.exchange:>11.2f}"
    yield f"  {'training, nothing overlapped':<32}{sums}  {total.total:.1f} s"
    yield f"  {'training, exchanges overlapped':<62}  {max(total.without_exchange, total.exchange):.1f} s"
    sampled = sum(sampling.values())
    listed = ", ".join(f"{name} {s:.1f}" for name, s in sampling.items())
    yield f"  sampling on {a.sampler_devices} devices: {sampled:.1f} s ({listed})"
    ratio = sampled * a.sampler_devices / (total.total * plan.devices)
    yield f"  sampling devices for each training device, for balance: {ratio:.2f}"
    slowest = max(total.total, sampled)
    hours = a.iterations * slowest / 3600
    devices = plan.devices + a.sampler_devices
    yield (
        f"  {a.iterations} iterations, sampling beside training: {hours:.1f} hours,"
        f" {hours * devices:,.0f} device hours on {plan.devices} + {a.sampler_devices}"
    )


def _notes(plan: Plan) -> Iterator[str]:
    a = plan.assumed
    if a.measured:
        yield (
            f"measured on this machine: products at {a.card.flops / 1e9:.0f} GFLOP/s,"
            f" {a.card.memory_bandwidth / 1e9:.0f} GB/s of memory; every row full, {a.action_share:.0%} of it sampled"
        )
        return
    yield (
        f"assumed: products at {a.mfu:.0%} of {a.card.flops / 1e12:.0f} TFLOP/s; {a.share:.0%} of"
        f" {a.card.link / 1e9:.0f} GB/s within {a.card.node} devices, {a.card.network / 1e9:.0f} GB/s beyond,"
        f" {a.card.memory_bandwidth / 1e12:.2f} TB/s of memory; every row full, {a.action_share:.0%} of it sampled"
    )
    yield (
        "compiled for CPUs: a GPU's fusions, which move less through memory, its temporary memory (fused attention"
        " needs far less) and its reduce-scatters, which show here as all-reduces of twice the bytes, are not in these"
        " numbers; what CPUs hold and exchange as float32 is counted in the model's compute_dtype"
    )
