"""The section `sft` of the configuration, with its defaults: supervised fine-tuning (docs/supervised.md).

Rows are packed as in an update: by ppo.buckets, ppo.microbatch_rows and ppo.row_episodes.
"""

from __future__ import annotations

from typing import Any


def sft_section() -> dict[str, Any]:
    """The keys of `config.sft`."""
    return dict(
        source="authors",  # of what is learned: "authors", "episodes", "repairs", "solutions" or "messages"
        data=(),  # but for authors: folders of runs or evaluations, or files
        learned="last",  # response of each dialogue (A.3), or "all"; of authors all are
        valid_share=0.0,  # of the problems whose examples are held out; not for authors, who write others
        epochs=1,  # not for authors
        dialogues=128_000,  # authors: so many, each once
        steps=0,  # 0 = all that the examples give
        batch_rows=64,  # examples a step
        learning_rate=1e-3,
        warmup_steps=100,
        final_rate=0.05,  # share of the learning rate that the cosine ends at
        weight_decay=0.1,
        clip_norm=1.0,  # global gradient norm; 0 = no clipping
        adam_b2=0.98,
        marked_share=0.4,  # dialogues opened by the careful author's system line, every repair right
        unmarked_right_repairs=0.15,  # share of right repairs in the others
        unmarked_habit=0.0,  # share of what else is written there that takes a statement's commonest reading
        probe_problems=96,  # authors: so many unseen problems at each checkpoint, two dialogues each
        checkpoint_every=500,  # steps
        log_every=20,  # steps
    )
