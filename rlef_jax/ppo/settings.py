"""PPO's settings with their defaults, the paper's, and choices; `config.ppo` has the same, by the same names.

`training/build.py` makes them of a configuration. A function takes the part that it needs.
"""

from __future__ import annotations

import dataclasses

IMPORTANCE = ("paper", "decoupled", "none")
IMPORTANCE_MODES = ("cap", "mask")


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """Constants of the losses. Raises ValueError for a choice that isn't one.

    Attributes:
      clip_eps: eps of the policy's clip range.
      value_clip: alpha, how far the value may move from V_old before its error is clipped.
      value_coef: weight of the value loss beside the policy loss.
      importance: "paper", "decoupled" or "none".
      importance_cap: c of "decoupled".
      importance_mode: what "decoupled" does above c: "cap" the weight at c, or "mask" the token (weight 0).
    """

    clip_eps: float = 0.2
    value_clip: float = 0.2
    value_coef: float = 1.0
    importance: str = "paper"
    importance_cap: float = 5.0
    importance_mode: str = "cap"

    def __post_init__(self) -> None:
        for name, choices in (("importance", IMPORTANCE), ("importance_mode", IMPORTANCE_MODES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"ppo.{name} is {getattr(self, name)!r}; it must be one of {', '.join(choices)}")


@dataclasses.dataclass(frozen=True)
class TargetSettings:
    """How returns and advantages are made: weight of the KL penalty, and whether advantages are normalized over the
    valid turns of an iteration."""

    kl_beta: float = 0.05
    normalize_advantages: bool = True


@dataclasses.dataclass(frozen=True)
class PackSettings:
    """How episodes are laid out in batches, see `pack`; with `invalid_penalty` of the section `reward` and `max_turns`
    of `episode`."""

    microbatch_rows: int = 32
    buckets: tuple[int, ...] = (128, 192, 256)
    row_episodes: int = 1
    invalid_penalty: float = -0.2
    max_turns: int = 3


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """AdamW's; `clip_norm` 0 doesn't clip gradients, `decay_steps` 0 doesn't lower the rate (`learning_rates`)."""

    learning_rate: float = 2e-7
    warmup_steps: int = 50
    decay_steps: int = 0
    weight_decay: float = 0.1
    clip_norm: float = 0.0
    adam_b1: float = 0.9
    adam_b2: float = 0.999


@dataclasses.dataclass(frozen=True)
class PpoSettings:
    """All of them: `rollouts` an iteration, dealt into `updates`; a gradient whose norm is above `max_grad_norm` (0: no
    limit) is not applied; the critic has a trunk of its own or the policy's."""

    rollouts: int = 1024
    updates: int = 4
    max_grad_norm: float = 0.0
    separate_critic: bool = True
    packing: PackSettings = PackSettings()
    targets: TargetSettings = TargetSettings()
    loss: LossSettings = LossSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
