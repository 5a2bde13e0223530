"""One reward per turn of an episode (RLEF, section 2.2), before the KL penalty."""

from __future__ import annotations

from rlef_jax.types import Episode, Status


def has_weight(episode: Episode) -> bool:
    """Whether an episode has weight 1; False (weight 0) if the judge broke on any of its turns.

    An episode of weight 0 keeps its row, but is left out of losses, denominators and statistics.
    """
    verdicts = (turn.verdict for turn in episode.turns)
    return episode.end != "infra" and not any(v is not None and v.status is Status.INFRA_ERROR for v in verdicts)


def turn_rewards(episode: Episode, *, invalid_penalty: float = -0.2) -> tuple[float, ...]:
    """r_t for each turn of a finished episode.

        r_t = +1   if t ends the episode and its program passes every public and hidden test
              -1   if t ends the episode and any test fails
              invalid_penalty   if t isn't the last and has no code that parses
              0    otherwise

    A single-turn episode has only a last turn, so the penalty never applies, as in the paper.

    Args:
      episode: finished (`end` is set) and judged on every turn.
      invalid_penalty: -0.2 in the paper.

    Returns:
      One reward per turn; all zero if the judge broke (see `has_weight`).

    Raises:
      ValueError: the episode is unfinished, or one of its turns has no verdict.
    """
    if not episode.end:
        raise ValueError(f"episode {episode.index} of step {episode.step} has not ended: it has no reward yet")
    if not has_weight(episode):
        return (0.0,) * len(episode.turns)
    if not episode.turns:
        raise ValueError(f"episode {episode.index} of step {episode.step} ended without a turn")
    rewards = []
    for number, turn in enumerate(episode.turns, start=1):
        if turn.verdict is None:
            raise ValueError(f"episode {episode.index} of step {episode.step}: turn {number} was never judged")
        rewards.append(0.0 if turn.verdict.valid else invalid_penalty)
    rewards[-1] = 1.0 if episode.solved else -1.0
    return tuple(rewards)
