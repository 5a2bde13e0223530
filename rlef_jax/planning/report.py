"""A plan: a run's programs and assumptions, its derived costs, and their table."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from rlef_jax.model.parameters import count_params
from rlef_jax.model.sharding import AXES
from rlef_jax.model.transformer import ModelConfig
from rlef_jax.planning.costs import flops_per_token, trained_share, training_flops_per_token
from rlef_jax.planning.memory import Moment, peak, sampler_parts, sampling_moments, training_moments
from rlef_jax.planning.programs import Program
from rlef_jax.planning.schedule import Overlap, Speeds, Timeline, overlaps, timeline

_GIB = 2.0**30
_ALL_REDUCE_S = 10e-6  # of a few rows' activations within a node: latency alone
_ROWS = 6  # exchanges and overlaps of a program that are listed


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """Assumptions of a plan: the hardware, the fractions of its peak that are reached, the sizes of an iteration."""

    speeds: Speeds
    measured: bool
    target: str
    length: int
    action_share: float
    updates: int
    microbatches: int
    rows: int
    iterations: int
    group: int
    decode_steps: int
    sampler_group: int  # devices that share a sampler's rows
    tensor: int  # of them, those that share a model
    sampler_devices: int
    cache_token_bytes: float  # of a token's keys and values on one device
    longest: int  # tokens that a dialogue may sample, one after the other

    @property
    def tokens(self) -> int:
        """Token slots per iteration."""
        return self.updates * self.microbatches * self.rows * self.length


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run's programs, sizes and assumptions.

    `training` are the learner's programs in an iteration's order, `sampling` the sampler's. `resident` is what lies on
    a training card all the time: {"weights", "moments", "reference": bytes}. `shared`: both lie on the same cards;
    `in_turn`: and there is no cache while the trainer works.
    """

    cfg: ModelConfig
    mesh: Mapping[str, int]
    training: Mapping[str, Program]
    sampling: Mapping[str, Program]
    resident: Mapping[str, float]
    separate_critic: bool
    shared: bool
    in_turn: bool
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

    def training_moments(self) -> list[Moment]:
        """What lies on a training card in each program."""
        beside = sampler_parts(self.sampling) if self.shared and self.sampling else {}
        if self.in_turn:
            beside.pop("cache", None)
        return training_moments(self.training, self.resident, self.networks, beside)

    def sampling_moments(self) -> list[Moment]:
        """What lies on a sampling card in each program."""
        if not self.sampling:
            return []
        beside = dict(self.resident) if self.shared else {}
        return sampling_moments(self.sampling, beside, in_turn=self.in_turn, renewed=trained_share(self.cfg))

    def too_large(self) -> list[Moment]:
        """The programs in which a card holds more than a run may use."""
        limit = self.assumed.speeds.card.limit
        return [m for m in [*self.training_moments(), *self.sampling_moments()] if m.total > limit]

    def seconds(self) -> dict[str, Timeline]:
        """{program of the learner: its time in an iteration on the training devices}."""
        a = self.assumed
        passes = a.updates * a.microbatches
        times = {"score": passes, "reference": passes, "below": passes, "prepare": self.cfg.n_layers}
        return {name: self.once(p) * times.get(name, a.updates) for name, p in self.training.items()}

    def once(self, program: Program) -> Timeline:
        """Of one run of a program."""
        return timeline(
            program.module, program.mesh_shape, AXES, self.assumed.speeds,
            open_trips=program.open_trips, float_bytes=program.float_bytes,
        )  # fmt: skip

    def step_seconds(self) -> float:
        """Of one decoding step: kernels read the keys and values of the tokens that are there, half of all slots."""
        a, decode = self.assumed, next(p for name, p in self.sampling.items() if name.startswith("decode"))
        read = a.group * a.length / 2 * a.cache_token_bytes if decode.work.kernels else 0.0
        return self.once(decode).total / a.decode_steps + read / (a.speeds.card.memory_bandwidth * a.speeds.share)

    def longest_seconds(self, tensor: int | None = None) -> float:
        """Seconds of the longest dialogue, on `tensor` devices for a sampling model (default: as planned).

        By arithmetic: what a step reads is divided by the devices, two all-reduces a layer are added.
        """
        a = self.assumed

        def exchanged(devices: int) -> float:
            return 2 * self.cfg.n_layers * _ALL_REDUCE_S if devices > 1 else 0.0

        read = (self.step_seconds() - exchanged(a.tensor)) * a.tensor
        devices = tensor or a.tensor
        return a.longest * (read / devices + exchanged(devices))

    def tensor_for_longest(self) -> int:
        """The least `sampling.tensor`, from the planned one on, with which the longest dialogue lasts no longer than an
        iteration's training; the largest that divides the heads of keys and values if none does."""
        trained = sum(self.seconds().values(), Timeline()).total
        tensor = self.assumed.tensor
        while self.longest_seconds(tensor) > trained and self.cfg.n_kv_heads % (2 * tensor) == 0:
            tensor *= 2
        return tensor

    def sampling_seconds(self) -> dict[str, float]:
        """Seconds of an iteration's sampling on all sampling devices: decoding and prefill of prompts."""
        a = self.assumed
        replicas = a.sampler_devices / a.sampler_group
        # Tokens of an episode are sampled in sequence, however many devices there are.
        steps = a.length * a.action_share * max(1.0, a.tokens / a.length / replicas / a.group)
        prompts = a.tokens * (1 - a.action_share) * flops_per_token(self.cfg, a.length, 0.0)
        return {
            "decoding": steps * self.step_seconds(),
            "prompts": prompts / (a.speeds.card.flops * a.speeds.mfu * a.sampler_devices),
        }


def table(plan: Plan, title: str = "") -> str:
    """The whole plan as text."""
    parts = [_model(plan), _memory(plan), _work(plan), _exchanges(plan), _time(plan), _notes(plan)]
    return "\n".join([title, *(line for part in parts for line in [*part, ""])]).rstrip()


def line(plan: Plan) -> str:
    """The plan in one line: peaks, and whether it fits."""
    limit = plan.assumed.speeds.card.limit
    parts = []
    for what, moments in (("trains", plan.training_moments()), ("samples", plan.sampling_moments())):
        if moments:
            most = peak(moments)
            parts.append(f"{what} in {most.total / _GIB:.1f} GiB ({most.program})")
    fits = "does not fit" if plan.too_large() else "fits"
    return f"{', '.join(parts)} of {limit / _GIB:.1f} a card: {fits}"


def _model(plan: Plan) -> Iterator[str]:
    count, a = count_params(plan.cfg), plan.assumed
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    share = trained_share(plan.cfg)
    trained = "" if share == 1 else f", {share:.2%} of them in the adapters that are trained"
    networks = f"{plan.networks} trained network(s)"
    yield f"{count / 1e9:.3g} B parameters{trained}, {networks}; mesh {mesh} = {plan.devices} devices"
    where = "the same" if plan.shared else f"{a.sampler_devices} others"
    yield f"sampling on {where}, a model on {a.sampler_group}; {a.group} rows at once on each"
    yield (
        f"an iteration: {a.updates} updates of {a.microbatches} micro-batches of {a.rows} rows of {a.length} tokens;"
        f" compiled for {a.target} in {plan.compile_seconds:.0f} s"
    )


def _memory(plan: Plan) -> Iterator[str]:
    limit = plan.assumed.speeds.card.limit
    sides = (
        ("training", plan.training, plan.training_moments()),
        ("sampling", plan.sampling, plan.sampling_moments()),
    )
    for side, programs, moments in sides:
        if not moments:
            continue
        yield f"{'memory of a ' + side + ' card, GiB':<32}{'arguments':>10}{'results':>9}{'temporary':>11}{'peak':>8}"
        for moment in moments:
            p = programs.get(moment.program)
            sizes = f"{p.arguments / _GIB:>10.2f}{p.results / _GIB:>9.2f}{p.temporary / _GIB:>11.2f}" if p else " " * 30
            over = "" if moment.total <= limit else "  too large"
            yield f"  {moment.program:<30}{sizes}{moment.total / _GIB:>8.1f}{over}"
        most = peak(moments)
        listed = ", ".join(f"{name} {size / _GIB:.1f}" for name, size in most.parts.items() if size >= _GIB / 100)
        share = f"{most.total / _GIB:.1f} of {limit / _GIB:.1f}"
        yield f"  most in {most.program}: {share}: {listed}"


def _work(plan: Plan) -> Iterator[str]:
    a = plan.assumed
    if "gradients" in plan.training:
        gradients = plan.training["gradients"]
        tokens = a.microbatches * a.rows * a.length / plan.devices
        by_hand = training_flops_per_token(plan.cfg, a.length, a.action_share) * plan.networks
        yield f"{'operations of a token, forward and backward':<44}{'GFLOP':>10}"
        yield f"  {'by hand, nothing computed twice':<42}{by_hand / 1e9:>10.3g}"
        yield f"  {'compiled products, loops as they run':<42}{gradients.work.flops / tokens / 1e9:>10.3g}"
    yield f"{'kernels of a program':<32}{'calls':>8}{'GFLOP':>12}"
    for name, p in {**plan.training, **plan.sampling}.items():
        for kernel in p.work.kernels:
            yield f"  {name + ': ' + kernel.target:<50.50}{kernel.count:>8.0f}{kernel.flops / 1e9:>12.1f}"


def _exchanges(plan: Plan) -> Iterator[str]:
    a = plan.assumed
    card, share = a.speeds.card, a.speeds.share
    head = f"{'times':>7}{'out, GiB':>10}{'async':>7}{'s':>8}"
    yield f"{'exchanged by a card in one run':<32}{'over':<18}{'loops':<12}{head}"
    for name, p in {**plan.training, **plan.sampling}.items():
        found = [c for c in p.work.collectives if c.output >= _GIB / 1000] or list(p.work.collectives[:1])
        for c in found[:_ROWS]:
            over = "+".join(c.axes) + (" (node)" if c.span <= card.node else "")
            loops = " x ".join(f"{trips:.0f}" for trips in c.loops) or "-"
            seconds = c.bytes / ((card.link if c.span <= card.node else card.network) * share)
            numbers = f"{c.count:>7.0f}{c.output / _GIB:>10.2f}{c.hidden / max(c.output, 1):>7.0%}{seconds:>8.3f}"
            yield f"  {name + ': ' + c.kind + ' ' + c.dtype:<30.30}{over:<18}{loops:<12}{numbers}"
        if len(found) > _ROWS:
            yield f"  {name}: {len(found) - _ROWS} more"
    begun = [(name, o) for name, p in plan.training.items() for o in _longest(plan, p)]
    if begun:
        yield "asynchronous, longest first: from start to end, what the schedule puts between, and its time"
    for name, o in begun:
        first = ", ".join(o.over[:2]) + (f" and {len(o.over) - 2} more" if len(o.over) > 2 else "")
        yield (
            f"  {name}: {o.exchange.kind} {o.exchange.dtype} x {o.exchange.times:.0f}: {o.seconds * 1e3:.2f} ms behind"
            f" {o.between * 1e3:.2f} ms of {first or 'nothing'}"
        )


def _longest(plan: Plan, program: Program) -> list[Overlap]:
    found = overlaps(program.module, program.mesh_shape, AXES, plan.assumed.speeds, open_trips=program.open_trips)
    return [o for o in found if o.seconds * o.exchange.times > 0.01][:_ROWS]


def _time(plan: Plan) -> Iterator[str]:
    a, parts = plan.assumed, plan.seconds()
    total = sum(parts.values(), Timeline())
    if parts:
        yield f"{'time of an iteration, s':<34}{'arithmetic':>12}{'exchanges':>11}{'exposed':>9}{'of all':>8}"
        for name, s in parts.items():
            yield f"  {name:<32}{s.busy:>12.2f}{s.exchange:>11.2f}{s.exposed:>9.2f}{s.total / total.total:>8.0%}"
        yield f"  {'training':<32}{total.busy:>12.2f}{total.exchange:>11.2f}{total.exposed:>9.2f}  {total.total:.1f} s"
    if not plan.sampling:
        return
    sampling = plan.sampling_seconds()
    sampled = sum(sampling.values())
    listed = ", ".join(f"{name} {s:.1f}" for name, s in sampling.items())
    yield f"  sampling: {sampled:.1f} s ({listed}); a decoding step {plan.step_seconds() * 1e3:.2f} ms"
    if not plan.shared:
        size = sampler_parts(plan.sampling)["sampler's weights"] * trained_share(plan.cfg)
        seconds = size / (a.speeds.card.network * a.speeds.share)
        yield f"  new weights for a sampling card: {size / _GIB:.1f} GiB, {seconds:.2f} s over the network"
    if not parts:
        return
    tensor = plan.tensor_for_longest()
    advice = ""
    if tensor != a.tensor:
        advice = f"; with sampling.tensor={tensor} about {plan.longest_seconds(tensor):.1f} s"
    yield f"  the longest dialogue, {a.longest:,} tokens one after the other: {plan.longest_seconds():.1f} s{advice}"
    if plan.shared:
        together, devices = total.total + sampled, plan.devices
    else:
        together, devices = max(total.total, sampled), plan.devices + a.sampler_devices
        ratio = sampled * a.sampler_devices / (total.total * plan.devices)
        yield f"  sampling devices for each training device, for balance: {ratio:.2f}"
    hours = a.iterations * together / 3600
    how = "in turn" if plan.shared else "sampling beside training"
    yield f"  {a.iterations} iterations, {how}: {hours:.1f} hours, {hours * devices:,.0f} device hours on {devices}"


def _notes(plan: Plan) -> Iterator[str]:
    a = plan.assumed
    card = a.speeds.card
    if a.measured:
        yield (
            f"measured on this machine: products at {card.flops / 1e9:.0f} GFLOP/s,"
            f" {card.memory_bandwidth / 1e9:.0f} GB/s of memory; every row full, {a.action_share:.0%} of it sampled"
        )
        return
    yield (
        f"assumed: products at {a.speeds.mfu:.0%} of {card.flops / 1e12:.0f} TFLOP/s; {a.speeds.share:.0%} of"
        f" {card.link / 1e9:.0f} GB/s within {card.node} devices, {card.network / 1e9:.0f} GB/s beyond,"
        f" {card.memory_bandwidth / 1e12:.2f} TB/s of memory; every row full, {a.action_share:.0%} of it sampled"
    )
    if a.target == "cpu":
        yield (
            "compiled for CPUs: a GPU's fusions, which move less through memory, its temporary memory (fused attention"
            " needs far less) and its reduce-scatters, which show here as all-reduces of twice the bytes, are not in"
            " these numbers; what CPUs hold and exchange as float32 is counted in the model's compute_dtype"
        )
    else:
        yield (
            f"compiled for {a.target} without one: what autotuning would choose for matrix products, and their scratch"
            " memory, is not in these numbers; nothing was run"
        )
