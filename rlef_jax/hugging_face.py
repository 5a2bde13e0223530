"""The `transformers` package, imported where a model's folder is read: that takes seconds."""

from __future__ import annotations

import os
from typing import Any


def transformers() -> Any:
    """The package. It only reads what lies on this machine, and is silent but for errors."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # or it tells of every import that torch isn't there
    import transformers

    return transformers
