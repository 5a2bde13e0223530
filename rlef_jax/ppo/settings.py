"""PPO's settings with their defaults, the paper's, and choices; `config.ppo` has the same, by the same names.

`training/build.py` makes them of a configuration. A function takes the part that it needs.
"""

from __future__ import annotations

import dataclasses
from typing import Any

IMPORTANCE = ("paper", "decoupled", "none")
IMPORTANCE_MODES = ("cap", "mask")
KL = ("mean", "product")
VALUE_LEVELS = ("turn", "token")
CRITIC = "critic"
BASELINES = (CRITIC, "rloo", "grpo", "dr_grpo")


def _check_choices(settings: Any, **choices: tuple[str, ...]) -> None:
    for name, known in choices.items():
        if getattr(settings, name) not in known:
            raise ValueError(f"ppo.{name} is {getattr(settings, name)!r}; it must be one of {', '.join(known)}")


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
      detach_critic: a critic without a trunk of its own reads hidden states that its loss doesn't train.
    """

    clip_eps: float = 0.2
    value_clip: float = 0.2
    value_coef: float = 1.0
    importance: str = "paper"
    importance_cap: float = 5.0
    importance_mode: str = "cap"
    detach_critic: bool = False

    def __post_init__(self) -> None:
        _check_choices(self, importance=IMPORTANCE, importance_mode=IMPORTANCE_MODES)


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """In the place of `LossSettings`: the policy's loss is the negative log-likelihood of the tokens that count, and
    there is no critic. Supervised training has it."""


@dataclasses.dataclass(frozen=True)
class TargetSettings:
    """How returns and advantages are made. Raises ValueError for a choice that isn't one or that excludes another.

    Attributes:
      kl_beta: weight of the KL penalty.
      kl: "mean" of the log ratio over a response's tokens, or its sum, that of the "product" of their probabilities.
      gamma, gae_lambda: discount and lambda of `returns.lambda_returns`, for each step from one value to the next.
      baseline: "critic", or what takes its place (`groups.py`).
      group_size: consecutive episode indexes of one problem: a group.
      normalize_advantages: over all values of an iteration that count; not without a critic, where a group's own
        scale holds, and an episode without another to compare with has the advantage 0.
    """

    kl_beta: float = 0.05
    kl: str = "mean"
    gamma: float = 1.0
    gae_lambda: float = 1.0
    baseline: str = CRITIC
    group_size: int = 1
    normalize_advantages: bool = True

    def __post_init__(self) -> None:
        _check_choices(self, kl=KL, baseline=BASELINES)
        if self.baseline == CRITIC:
            return
        if self.normalize_advantages:
            raise ValueError(f"ppo.normalize_advantages must be False with ppo.baseline={self.baseline!r}")
        if self.gae_lambda != 1.0:
            raise ValueError(f"ppo.gae_lambda must be 1 with ppo.baseline={self.baseline!r}: there are no values")


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
    limit) is not applied; the critic has a trunk of its own or the policy's, and predicts a value for each "turn" or
    "token". Raises ValueError for a `value_level` of another name."""

    rollouts: int = 1024
    updates: int = 4
    max_grad_norm: float = 0.0
    separate_critic: bool = True
    value_level: str = "turn"
    packing: PackSettings = PackSettings()
    targets: TargetSettings = TargetSettings()
    loss: LossSettings = LossSettings()
    optimizer: OptimizerSettings = OptimizerSettings()

    def __post_init__(self) -> None:
        _check_choices(self, value_level=VALUE_LEVELS)

    @property
    def has_critic(self) -> bool:
        """Whether a value network is trained."""
        return self.targets.baseline == CRITIC

    @property
    def value_kind(self) -> str:
        """`TokenBatch.value_kind` of the batches."""
        return self.value_level if self.has_critic else "none"
