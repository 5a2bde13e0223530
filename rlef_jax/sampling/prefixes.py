"""First prompts that several dialogues share: one of them prefills, the others get a copy of its keys and values."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

import numpy as np

Prompt = tuple[int, ...]


class Prefixes:
    """What workers know of each other's first prompts. Safe to use from several threads.

    A prompt's keys and values are kept as long as somebody waits for them, and only for the weights that made them.
    """

    def __init__(self, on_ready: Callable[[], None]) -> None:
        """Args: on_ready: called when those who wait may `claim` again."""
        self._on_ready = on_ready
        self._lock = threading.Lock()
        self._wanted: Counter[Prompt] = Counter()
        self._led: set[Prompt] = set()
        self._kept: dict[Prompt, tuple[int, np.ndarray]] = {}

    def want(self, prompt: Prompt) -> None:
        """A dialogue that begins with `prompt` will `claim` it."""
        with self._lock:
            self._wanted[prompt] += 1

    def claim(self, prompt: Prompt, version: int) -> tuple[str, np.ndarray | None]:
        """What the dialogue does: ("prefill", None) by itself, ("lead", None) for others too and then `publish`,
        ("copy", keys and values), or ("wait", None) and claim again."""
        with self._lock:
            kept = self._kept.get(prompt)
            if kept is not None and kept[0] == version:
                self._served(prompt)
                return "copy", kept[1]
            if prompt in self._led:
                return "wait", None
            self._kept.pop(prompt, None)
            self._served(prompt)
            if self._wanted[prompt] <= 0:
                del self._wanted[prompt]
                return "prefill", None
            self._led.add(prompt)
            return "lead", None

    def publish(self, prompt: Prompt, version: int, taken: np.ndarray) -> None:
        """Gives the others what the leader's prompt left in the cache under the weights `version`."""
        with self._lock:
            self._led.discard(prompt)
            if self._wanted[prompt] > 0:
                self._kept[prompt] = (version, taken)
        self._on_ready()

    def _served(self, prompt: Prompt) -> None:
        self._wanted[prompt] -= 1
        if self._wanted[prompt] <= 0:
            self._kept.pop(prompt, None)
