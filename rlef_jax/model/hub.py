"""A folder to a model repository on the Hugging Face Hub, by its own client: `pip install rlef-jax[hub]`.

The client reads HF_ENDPOINT (another Hub), HF_TOKEN or what `hf auth login` kept, and the other variables that it
documents.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from rlef_jax.errors import ConfigError, RunError

_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_LONGEST = 300  # characters of what the Hub said


class HubRepository:
    """A model repository OWNER/NAME on the Hub. It is created first, so that a refusal comes before any writing.

    Raises ConfigError without the client, for a name that is none, without a token, and where the Hub refuses.
    """

    def __init__(self, name: str, *, public: bool = False) -> None:
        try:
            import huggingface_hub
        except ImportError as error:
            raise ConfigError("--push needs the package huggingface_hub: pip install 'rlef-jax[hub]'") from error
        self.name = name
        self._api = huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        if not _NAME.fullmatch(name):
            raise ConfigError(f"--push: {name!r} is not OWNER/NAME")
        if huggingface_hub.get_token() is None:
            raise ConfigError(
                "--push: no token of the Hub: set HF_TOKEN or run `hf auth login`; it must be one that writes"
            )
        try:
            self._api.create_repo(name, private=not public, exist_ok=True)
        except Exception as error:  # of the client, its HTTP client and the system: they have no common class
            raise ConfigError(
                f"--push: {self._api.endpoint} doesn't let {name} be made: {_error_line(error)}"
            ) from error

    def upload(self, folder: Path, message: str) -> str:
        """Adds or replaces the folder's files; returns the commit's address. Raises RunError where that fails."""
        try:
            commit = self._api.upload_folder(repo_id=self.name, folder_path=folder, commit_message=message)
        except Exception as error:
            raise RunError(
                f"{folder} is written, but was not pushed to {self.name} on {self._api.endpoint}: {_error_line(error)};"
                f" to try again: hf upload {self.name} {folder}"
            ) from error
        return str(commit.commit_url)


def _error_line(error: Any) -> str:
    """What went wrong, in one line: the Hub's own words where it said any."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    words = getattr(error, "server_message", None) or str(error) or type(error).__name__
    line = " ".join(words.split())
    line = line if len(line) <= _LONGEST else line[:_LONGEST] + " ..."
    hint = {401: "is the token right?", 403: "may the token write there?"}.get(status or 0, "")
    return " ".join(part for part in (f"{status}:" if status else "", line, f"({hint})" if hint else "") if part)
