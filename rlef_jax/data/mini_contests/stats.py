"""Counts of MiniContests: python -m rlef_jax.data.mini_contests.stats --problems=20000

Distinct training problems and programs, families, ambiguous questions, and the overlap of fixed splits with training.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Sequence

from rich.progress import track

from rlef_jax import arguments
from rlef_jax.command_line import errors_as_lines
from rlef_jax.data.mini_contests import EVAL_SIZES, eval_split, problem_at
from rlef_jax.data.mini_contests.build import normalise
from rlef_jax.types import Problem


def program_shapes(problems: Sequence[Problem]) -> set[str]:
    """The problems' reference programs without names and constants (`build.normalise`)."""
    return {normalise(p.solutions[0]) for p in problems}


def statistics(train: Sequence[Problem]) -> dict[str, object]:
    """Counts for a sample of training problems and for each fixed split."""
    train_shapes, statements = program_shapes(train), {p.description for p in train}
    counts: dict[str, object] = {
        "train_sampled": len(train),
        "train_distinct": len({(p.description, p.public_tests, p.hidden_tests) for p in train}),
        "train_statements": len(statements),
        "train_program_shapes": len(train_shapes),
        "train_families": len({p.tags["family"] for p in train}),
        "open_share": sum(p.tags["open"] for p in train) / len(train),
        "readings": dict(collections.Counter(len(p.tags["readings"]) for p in train if p.tags["open"])),
        "questions": dict(collections.Counter(p.tags["question"] for p in train if p.tags["open"]).most_common()),
    }
    for split in EVAL_SIZES:
        problems = eval_split(split)
        new = [p for p in problems if normalise(p.solutions[0]) not in train_shapes]
        counts[split] = {
            "problems": len(problems),
            "statements_in_train": sum(p.description in statements for p in problems),
            "families": len({p.tags["family"] for p in problems}),
            "new_program_shape_share": len(new) / len(problems),
        }
    return counts


def main() -> None:
    """Prints the numbers as JSON."""
    parser = arguments.Parser(description=__doc__)
    parser.add_argument("--problems", type=int, default=20_000, help="training problems to draw")
    parser.add_argument("--seed", type=int, default=0)
    with errors_as_lines():
        args = parser.parse_args()
        train = [problem_at("train", args.seed, i) for i in track(range(args.problems), "problems")]
        print(json.dumps(statistics(train), indent=2))


if __name__ == "__main__":
    main()
