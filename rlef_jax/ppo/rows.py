"""Which token sequences share a row, and how long each row is: the layout of a batch, from lengths alone."""

from __future__ import annotations

from collections.abc import Sequence

type Rows = list[tuple[int, ...]]  # which sequences each row holds, by position


def rows_by_bucket(
    lengths: Sequence[int], counts: Sequence[bool], buckets: Sequence[int], rows: int, row_episodes: int
) -> list[tuple[int, Rows]]:
    """Which rows go to which bucket, buckets ascending: the fewest token slots, at a tie one sequence a row.

    Args:
      lengths: tokens of each sequence (an episode, a dialogue).
      counts: whether each one counts; those that don't share no row with those that do.
      buckets: row lengths, ascending.
      rows: rows a batch; `row_episodes`: sequences that may share a row.

    Raises ValueError for a sequence that is longer than the largest bucket.
    """
    for number, length in enumerate(lengths):
        if length > buckets[-1]:
            raise ValueError(
                f"episode {number} has {length} tokens but the largest bucket holds {buckets[-1]}: add a larger "
                "bucket to ppo.buckets or lower episode.context"
            )
    candidates = [_assign([(n,) for n in range(len(lengths))], lengths, buckets, rows)]
    if row_episodes > 1:
        candidates.append(_assign(_shared(lengths, counts, buckets[-1], row_episodes), lengths, buckets, rows))
    return min(candidates, key=lambda c: sum(bucket * rows * -(-len(held) // rows) for bucket, held in c))


def _shared(lengths: Sequence[int], counts: Sequence[bool], capacity: int, most: int) -> Rows:
    """Rows of at most `capacity` tokens and `most` sequences: the longest first, into the fullest row with room."""
    held: list[list[int]] = []
    free: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        fitting = [
            row
            for row, numbers in enumerate(held)
            if lengths[number] <= free[row] and len(numbers) < most
            if counts[numbers[0]] == counts[number]
        ]
        if not fitting:
            held.append([])
            free.append(capacity)
        row = min(fitting, key=lambda r: free[r], default=len(held) - 1)
        held[row].append(number)
        free[row] -= lengths[number]
    return sorted(tuple(sorted(numbers)) for numbers in held)


def _assign(rows_held: Rows, lengths: Sequence[int], buckets: Sequence[int], rows: int) -> list[tuple[int, Rows]]:
    """The rows of each bucket, buckets ascending, each one's rows in order."""
    members: dict[int, Rows] = {bucket: [] for bucket in buckets}
    for held in rows_held:
        length = sum(lengths[n] for n in held)
        members[next(bucket for bucket in buckets if length <= bucket)].append(held)
    for small, large in zip(buckets, buckets[1:], strict=False):
        left = len(members[small]) % rows
        room = -len(members[large]) % rows
        if 0 < left <= room:
            members[large] = sorted(members[large] + members[small][-left:])
            del members[small][-left:]
    return list(members.items())
