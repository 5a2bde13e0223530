"""The `transformers` package, imported where a model's folder is read: that takes five seconds."""

from __future__ import annotations

import os
from typing import Any


def transformers() -> Any:
    """The package. It says nothing but errors: without torch every import of it would print so on stderr.

    TRANSFORMERS_VERBOSITY in the environment sets what else it says.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import transformers

    return transformers
