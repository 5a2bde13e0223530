"""How many examples a property test draws: under the profile "full" as many as it names, by default an eighth of them.

make test                                              # the default
pytest --hypothesis-profile=full tests/test_fuzz.py    # in `make test-slow`
"""

from __future__ import annotations

import hypothesis

FULL, DEFAULT = 800, 100  # examples of a property that names no number, by profile


def register() -> None:
    """Makes the profiles known, and the default one current."""
    common = hypothesis.settings(
        deadline=None,  # two shared cores: a slow example says nothing about the code
        derandomize=True,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
    for name, count in (("default", DEFAULT), ("full", FULL)):
        hypothesis.settings.register_profile(name, common, max_examples=count)
    hypothesis.settings.load_profile("default")


def examples(full: int) -> int:
    """The number of examples under the current profile, of `full` under the full one."""
    return -(-full * hypothesis.settings.default.max_examples // FULL)
