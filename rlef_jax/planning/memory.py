"""What lies on a card while each of a run's programs runs, and whether it fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from rlef_jax.planning.programs import Program

NEW_WEIGHTS = "new weights arrive"  # a moment without a program

# Which of what lies on a training card anyway is among a program's arguments. Of another program's nothing is.
_HELD = {
    "gradients": ("weights",),
    "apply": ("weights", "moments"),
    "score": ("weights",),
    "reference": ("reference",),
    "below": ("reference",),
    "prepare": ("policy",),
}


@dataclasses.dataclass(frozen=True)
class Moment:
    """Bytes on a card while `program` runs: {content: bytes}."""

    program: str
    parts: Mapping[str, float]

    @property
    def total(self) -> float:
        """Bytes of all of it."""
        return sum(self.parts.values())


def training_moments(
    programs: Mapping[str, Program], resident: Mapping[str, float], networks: int, beside: Mapping[str, float]
) -> list[Moment]:
    """A training card in each of the learner's programs, in an iteration's order.

    Args:
      programs: the learner's, by name.
      resident: {"weights", "moments", "reference": bytes} that lie there all the time.
      networks: that are trained: the policy is one of so many equal shares of the weights.
      beside: {content: bytes} of a sampler on the same card.
    """
    sizes = {**resident, "policy": resident["weights"] / networks}
    return [
        Moment(
            name,
            {
                **resident,
                **beside,
                "arguments beside": max(0.0, p.arguments - sum(sizes.get(part, 0.0) for part in _HELD.get(name, ()))),
                "results": float(p.results),
                "temporary": float(p.temporary),
            },
        )
        for name, p in programs.items()
    ]


def sampler_parts(programs: Mapping[str, Program]) -> dict[str, float]:
    """{"sampler's weights", "cache": bytes of a sampling card}: a decoding program consumes the cache."""
    decode = next(p for name, p in programs.items() if name.startswith("decode"))
    return {"sampler's weights": float(decode.arguments - decode.aliased), "cache": float(decode.aliased)}


def sampling_moments(
    programs: Mapping[str, Program], beside: Mapping[str, float], *, in_turn: bool, renewed: float = 1.0
) -> list[Moment]:
    """A sampling card in each of the sampler's programs; `beside` are {content: bytes} of a trainer on the same card.

    While new weights arrive, a share `renewed` of all of them, the old ones still lie there, and the cache too, unless
    the sampler works `in_turn` with a trainer: then it has no cache between two iterations' rollouts.
    """
    parts = sampler_parts(programs)
    held = sum(parts.values())
    weights = parts["sampler's weights"]
    kept = {"sampler's weights": weights} if in_turn else parts
    moments = [Moment(NEW_WEIGHTS, {**kept, **beside, "new weights": weights * renewed})]
    for name, p in programs.items():
        more = {
            "arguments beside": max(0.0, p.arguments - held),
            "results": float(p.results),
            "temporary": float(p.temporary),
        }
        moments.append(Moment(name, {**parts, **beside, **more}))
    return moments


def peak(moments: list[Moment]) -> Moment:
    """The one that needs most."""
    return max(moments, key=lambda moment: moment.total)
