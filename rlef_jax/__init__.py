"""RLEF in JAX: reinforcement learning of code models from execution feedback (Gehring et al., ICML 2025).

`import rlef_jax as rj` offers what `rlef_jax.api` lists (docs/api.md); all else is internal. To read the code, start
with `rlef_jax.types` (the vocabulary), then follow a rollout: `data`, `dialog`, `episode`, `reward`, `ppo`, `model`;
below them `execution`, `sampling`, `training`, `evaluation`, `analysis` own processes, devices and files.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rlef_jax.api import (
        Episode,
        Policy,
        Problem,
        Run,
        Status,
        TestCase,
        TestResult,
        Turn,
        Verdict,
        judge_programs,
        load_policy,
        read_run,
        run_evaluation,
        sample,
        show,
        solve,
    )

# The names of `rlef_jax.api`, which is imported when one is asked for: importing the package does no work.
__all__ = [
    "Episode", "Policy", "Problem", "Run", "Status", "TestCase", "TestResult", "Turn", "Verdict",
    "judge_programs", "load_policy", "read_run", "run_evaluation", "sample", "show", "solve",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'rlef_jax' has no attribute {name!r}")
    from rlef_jax import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
