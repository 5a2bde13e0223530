"""Files that ship with the package: the tiny model's tokenizer and warm start."""

from __future__ import annotations

from pathlib import Path


def asset_path(name: str) -> Path:
    """The file that a config value names: "package:NAME" is the file of this folder with that stem, else a path.

    Raises FileNotFoundError where there is no such file.
    """
    if not name.startswith("package:"):
        path = Path(name)
        if not path.exists():
            raise FileNotFoundError(f"no file {name!r} (from {Path.cwd()})")
        return path
    folder = Path(__file__).parent
    files = [p for p in sorted(folder.iterdir()) if p.suffix not in (".py", ".pyc") and p.is_file()]
    for path in files:
        if path.stem == name.removeprefix("package:"):
            return path
    raise FileNotFoundError(f"{name!r} does not ship with rlef_jax; it has {[f'package:{p.stem}' for p in files]}")
