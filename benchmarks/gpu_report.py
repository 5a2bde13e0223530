"""The table that `gpu_check.py` prints, and what became of its stages."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any

import jax

from rlef_jax.training.processes import all_gather, is_first

PASS, FAIL, SKIPPED, TOLD = "PASS", "FAIL", "skipped", ""


class Report:
    """The table's rows, printed as they come by the first process of a job.

    A row says PASS or FAIL where what was found has a bound, "skipped" where it can't be checked here, else nothing.
    `platform` is where JAX computes, "cpu" or "gpu": each row names it.
    """

    def __init__(self, platform: str) -> None:
        self.rows: list[dict[str, Any]] = []
        self._seconds: dict[str, float] = collections.defaultdict(float)
        self._platform, self._stage = platform, ""
        self._print(f"{'stage':<11}{'on':<6}{'what':<60}{'found':>12}{'bound':>10}  result")

    def _print(self, text: str) -> None:
        if is_first():
            print(text, flush=True)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What is added inside is of this stage. An exception fails it, and the next one goes on.

        In a job of several processes it ends this one, for the others wait for it in their next exchange.
        """
        self._stage, began = name, time.perf_counter()
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self._add(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:200], "", FAIL)
            if jax.process_count() > 1:
                print(f"FAILED: {name} (process {jax.process_index()})", flush=True)
                sys.stderr.flush()
                os._exit(1)  # a usual exit would wait for the others
        self._seconds[name] += time.perf_counter() - began

    def _add(self, what: str, found: Any, result: str, bound: Any = "", on: str = "") -> None:
        shown = [f"{v:.3g}" if isinstance(v, float) and v < 1000 else f"{v:,.0f}" if isinstance(v, float) else str(v)
                 for v in (found, bound)]  # fmt: skip
        on = on or self._platform
        row = {"stage": self._stage, "on": on, "what": what, "found": found, "bound": bound, "result": result}
        self.rows.append(row)
        self._print(f"{self._stage:<11}{on:<6}{what:<60}{shown[0]:>12}{shown[1]:>10}  {result}".rstrip())

    def tell(self, what: str, found: Any = "", on: str = "") -> None:
        """A number without a bound; `on` is another library's platform."""
        self._add(what, found, TOLD, on=on)

    def judge(self, what: str, found: Any, ok: bool, bound: Any = "") -> None:
        """Something that is right or wrong."""
        self._add(what, found, PASS if ok else FAIL, bound)

    def at_most(self, what: str, found: float, bound: float) -> None:
        """A number with an upper bound; NaN is over it."""
        self.judge(what, found, bool(found <= bound), bound)

    def skip(self, what: str, why: str) -> None:
        """Something that can't be checked here."""
        self._add(f"{what}: {why}", "", SKIPPED)

    def end(self) -> int:
        """Prints what became of the stages in all processes, and the line of JSON. The exit code."""
        failures = {
            number: list(dict.fromkeys(row["stage"] for row in rows if row["result"] == FAIL))
            for number, rows in enumerate(all_gather(self.rows))
        }
        failed = list(dict.fromkeys(stage for stages in failures.values() for stage in stages))
        passed, skipped = ([name for name in self._with(result) if name not in failed] for result in (PASS, SKIPPED))
        self._print("")
        for said, names in (("passed", passed), ("skipped in part or whole", skipped), ("FAILED", failed)):
            if names:
                self._print(f"{said}: {', '.join(names)}")
        for number, stages in failures.items():
            if stages and len(failures) > 1:
                self._print(f"FAILED in process {number}: {', '.join(stages)}")
        self._print(f"seconds: {', '.join(f'{name} {s:.1f}' for name, s in self._seconds.items())}")
        if self._platform == "cpu":
            self._print("on CPUs: nothing here was computed on a GPU")
        self._print(json.dumps({"benchmark": "gpu_check", "failed": failed, "results": self.rows}))
        return 1 if failed else 0

    def _with(self, result: str) -> list[str]:
        return list(dict.fromkeys(row["stage"] for row in self.rows if row["result"] == result))
