"""Package metadata.

Versions are lower bounds, for other people's environments; those that the tests ran against are in constraints.txt.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "rlef_jax" / "__init__.py").read_text())[1]

# What building and reading CodeContests takes (docs/code_contests.md).
_DATA = ["array_record>=0.8", "pyarrow>=18.0", "tensorflow-datasets>=4.9.10"]

setup(
    name="rlef-jax",
    version=VERSION,
    description="RLEF in JAX: reinforcement learning of code models from execution feedback",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.12",
    packages=find_packages(include=["rlef_jax", "rlef_jax.*"]),
    # The tiny model, its tokenizer and the recipe they came from ship with the package, and so does what hardware is.
    package_data={"rlef_jax": ["py.typed", "assets/**/*", "planning/targets/*"]},
    install_requires=[
        "absl-py>=2.1",
        "flax>=0.12",
        "gguf>=0.17",
        "jax>=0.12",
        "jinja2>=3.1",
        "markdown-it-py>=3.0",
        "matplotlib>=3.9",
        "ml_collections>=1.0",
        "ml_dtypes>=0.5",
        "numpy>=2.0",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11",
        "rich>=13.9",
        "safetensors>=0.6",
        "sentencepiece>=0.2",
        "tensorboard>=2.18",
        "tokenizers>=0.21",
        "transformers>=5.0",
    ],
    extras_require={
        "data": _DATA,
        "dev": [
            *_DATA,
            "hypothesis>=6.115",
            "jaxtyping>=0.3",
            "mypy>=1.13",
            "pre-commit>=4.0",
            "pytest>=8.3",
            "pytest-xdist>=3.7",
            "ruff>=0.8",
        ],
        "hub": ["huggingface_hub>=1.0"],  # transformers brings it; rlef_jax.export --push needs it
        "notebooks": ["ipykernel>=6.29", "jupyterlab>=4.3", "nbconvert>=7.16"],
        "cuda": ["jax[cuda12]>=0.12"],
        "tpu": ["jax[tpu]>=0.12"],
    },
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
