"""What a configuration that doesn't fit may change: candidates by arithmetic, the first that fits by compiling it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from typing import Any

from ml_collections import ConfigDict

from rlef_jax import config as config_lib
from rlef_jax.errors import ConfigError
from rlef_jax.planning.memory import NEW_WEIGHTS, Moment
from rlef_jax.planning.programs import OutOfMemoryError
from rlef_jax.planning.report import Plan

# From a configuration and the names of programs, None for all, to a plan.
type MakePlan = Callable[[ConfigDict, Collection[str] | None], Plan]


def mended(config: ConfigDict, plan: Plan, make: MakePlan) -> str:
    """ "KEY from A to B would" for the first candidate that, compiled, fits; else what would not."""
    large = plan.too_large()
    worst, limit = max(large, key=lambda moment: moment.total), plan.assumed.speeds.card.limit
    names = {moment.program.split()[0] for moment in large}
    kinds = {name.split()[0] for name in [*plan.sampling, NEW_WEIGHTS]}
    tried = []
    # What lies on a sampling card is read from its decoding program.
    names |= {"decode"} if plan.shared or names & kinds else set()
    for key, old, new, expected in candidates(config, worst, limit, sampling=worst.program.split()[0] in kinds):
        if expected > limit:
            continue
        try:
            if not make(changed(config, key, new), names).too_large():
                return f"{key} from {old} to {new} would"
        except (ConfigError, OutOfMemoryError, ValueError) as error:
            tried.append(f"{key} = {new} ({str(error).splitlines()[0]:.80})")
        else:
            tried.append(f"{key} = {new}")
    return f"no single key would{'; tried ' + ', '.join(tried) if tried else ''}"


def changed(config: ConfigDict, key: str, value: Any) -> ConfigDict:
    """A copy with another value of a key; `mesh.data` makes up for other values of `mesh.fsdp` and `mesh.tensor`.

    Raises ConfigError for values that can't run together.
    """
    copy = config.copy_and_resolve_references()
    section, name = key.split(".")
    if section == "mesh":
        copy.mesh.data = config.mesh.data * config.mesh[name] // value
    copy[section][name] = value
    config_lib.check(copy)
    return copy


def candidates(
    config: ConfigDict, moment: Moment, limit: float, *, sampling: bool
) -> Iterator[tuple[str, Any, Any, float]]:
    """(key, its value, another, bytes that are then expected in `moment`), the mildest change first.

    `limit` are the bytes that there may be; `sampling`: whether it is a moment of a sampling card.
    """
    m, p, s = config.mesh, config.ppo, config.sampling
    if sampling:
        cache = moment.parts.get("cache", 0.0)
        most = math.floor((limit - moment.total + cache) / 2**30)
        if s.cache_gib and 0 < most < s.cache_gib:
            yield "sampling.cache_gib", s.cache_gib, float(most), moment.total - cache + most * 2**30
        for part in (2, 4, 8) if not s.cache_gib else ():
            if s.rows % (part * s.workers * s.data) == 0:
                yield "sampling.rows", s.rows, s.rows // part, moment.total - cache * (1 - 1 / part)
        for times in (2, 4, 8):
            if config.model.n_kv_heads % (s.tensor * times) == 0:
                yield "sampling.tensor", s.tensor, s.tensor * times, moment.total / times
        return
    temporary = moment.parts.get("temporary", 0.0)
    for part in (2, 4, 8):
        if p.microbatch_rows // part >= m.data * m.fsdp and p.microbatch_rows % part == 0:
            yield "ppo.microbatch_rows", p.microbatch_rows, p.microbatch_rows // part, moment.total - temporary / 2
    if config.model.remat != "full":
        yield "model.remat", config.model.remat, "full", moment.total - temporary / 2
    for times in (2, 4):
        if m.data % times == 0:
            yield "mesh.fsdp", m.fsdp, m.fsdp * times, temporary + (moment.total - temporary) / times
