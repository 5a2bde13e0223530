# `make demo` and `make test` need nothing but a Python 3.12: each makes .venv and installs into it what it lacks.

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo
FLAGS ?=
# Bytecode is written when a module is first imported, also where the environment says not to: without it every process
# of a run or a test compiles what it imports anew. Compiling all of it at installation costs more than it saves.
export PYTHONPYCACHEPREFIX := $(CURDIR)/$(VENV)/bytecode
unexport PYTHONDONTWRITEBYTECODE
# constraints.txt holds the versions that the tests ran against; `make lock` writes it anew.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile -c constraints.txt

.PHONY: help demo test test-slow gpu-check test-gpu-compile test-tpu-compile gpu-env tpu-env soak lint format lock warm-start smollm2 bench-env parity golden clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' Makefile

$(BIN)/python:
	@python=$$(PYTHON="$(PYTHON)" sh scripts/find_python.sh) && echo "making $(VENV) with $$python" && "$$python" -m venv $(VENV)

$(VENV)/.installed: setup.py pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing rlef_jax into $(VENV)"
	@$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: setup.py pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing rlef_jax and its development tools into $(VENV)"
	@$(PIP) -e '.[dev]'
	@touch $(VENV)/.installed $@

# Trimming and small pages cost training up to a third of its speed under glibc's defaults (docs/lab/update.md).
# One arena: a program's buffers come from the heap that the last one's went back to, whichever thread asks.
MALLOC := GLIBC_TUNABLES=glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=268435456:glibc.malloc.arena_max=1

demo: $(VENV)/.installed ## learn MiniContests by RLEF (7 minutes on two idle cores); replaces runs/demo
	@rm -rf $(DEMO)
	@$(MALLOC) $(BIN)/python -m rlef_jax.train --config=configs/tiny.py --workdir=$(DEMO) $(FLAGS)
	@echo "table, summary.json, plots and episodes: $(DEMO)"

lint: $(VENV)/.installed-dev ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(VENV)/.installed-dev ## mend what ruff can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

test: lint ## lint, types and the tests (16 minutes on two cores)
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/.installed-dev ## the tests that take minutes each
	@$(BIN)/python -m pytest -q -m slow
	@$(BIN)/python -m pytest -q --hypothesis-profile=full tests/test_fuzz.py

lock: ## constraints.txt anew: the newest versions that setup.py allows
	@sh scripts/lock.sh

soak: $(VENV)/.installed ## 200,000 tests on the executor, some hostile, workers killed meanwhile (an hour at most)
	@$(BIN)/python benchmarks/soak.py

warm-start: $(VENV)/.installed ## train the shipped warm start anew (90 minutes at most)
	@$(MALLOC) $(BIN)/python -m rlef_jax.sft --config=configs/tiny_sft.py --workdir=runs/warm_start
	@$(MALLOC) $(BIN)/python -m rlef_jax.sft --config=configs/tiny_sft.py:habits --workdir=runs/warm_start_habits

smollm2: $(VENV)/.installed ## SmolLM2-135M-Instruct (93 MB, Apache 2.0) to weights/, for configs/smollm2_135m.py
	@$(BIN)/python -m rlef_jax.fetch

# torch's CPU build and what the references need, in an environment of their own: `make test` never needs it.
# Its Python is 3.11, for which constraints.txt holds no versions.
BENCH := .bench-env
$(BENCH)/.installed:
	@python=$$(PYTHON="$(PYTHON)" sh scripts/find_bench_python.sh) && "$$python" -m venv $(BENCH)
	@$(BENCH)/bin/python -m pip --disable-pip-version-check install --quiet torch==2.13.0 transformers accelerate gguf peft
	@touch $@

bench-env: $(BENCH)/.installed ## the environment of references and baselines: Python 3.11, torch, transformers

# JAX's compilers for GPUs and TPUs, each in an environment of its own (several GB): they compile for hardware that
# isn't there. `make test` never needs them. Their JAX is the one of constraints.txt.
GPU := .gpu-env
TPU := .tpu-env
$(GPU)/.installed $(TPU)/.installed: setup.py constraints.txt
	@folder=$(@D); python=$$(PYTHON="$(PYTHON)" sh scripts/find_python.sh) && { [ -x $$folder/bin/python ] || "$$python" -m venv $$folder; }
	@case $(@D) in $(GPU)) extra=cuda12 ;; *) extra=tpu ;; esac; sh scripts/jax_env.sh $(@D) $$extra pytest hypothesis jaxtyping -e .
	@touch $@

gpu-env: $(GPU)/.installed ## the environment that compiles for GPUs without one: jax[cuda12] (6 GB)
tpu-env: $(TPU)/.installed ## the environment that compiles for TPUs without one: jax[tpu]

gpu-check: $(GPU)/.installed ## on a machine with a GPU: numbers against the CPU's, speed, memory (docs/hardware.md)
	@$(GPU)/bin/python benchmarks/gpu_check.py $(FLAGS)

test-gpu-compile: $(GPU)/.installed ## programs compiled for H100s: memory, exchanges, kernels (20 minutes at most)
	@JAX_PLATFORMS=cpu TF_CPP_MIN_LOG_LEVEL=3 JAX_ENABLE_COMPILATION_CACHE=false XLA_FLAGS="$$XLA_FLAGS --xla_gpu_autotune_level=0" $(GPU)/bin/python -m pytest -q -m gpu_compile $(FLAGS)

test-tpu-compile: $(TPU)/.installed ## programs compiled for TPUs
	@JAX_PLATFORMS=cpu JAX_ENABLE_COMPILATION_CACHE=false TPU_SKIP_MDS_QUERY=1 $(TPU)/bin/python -m pytest -q -m tpu_compile $(FLAGS)


REFERENCE := runs/reference
parity: $(VENV)/.installed-dev $(BENCH)/.installed smollm2 ## compare models with transformers on torch, live (10 minutes)
	@rm -rf $(REFERENCE)
	@$(BIN)/python -m rlef_jax.export --init=weights/smollm2_135m.gguf --output=$(REFERENCE)/exported
	@$(BIN)/python -m tests.parity.lora_folder $(REFERENCE)/lora
	@$(BENCH)/bin/python tests/parity/reference.py $(REFERENCE) --full --gguf weights/smollm2_135m.gguf --exported $(REFERENCE)/exported --adapters $(REFERENCE)/lora
	@RLEF_JAX_REFERENCE=$(REFERENCE) $(BIN)/python -m pytest -q -m "" tests/model/test_pretrained_families.py tests/model/test_pretrained_smollm2.py tests/model/test_peft_folder.py

golden: $(BENCH)/.installed smollm2 ## write the golden files of tests/golden anew
	@$(BENCH)/bin/python tests/parity/reference.py tests/golden --gguf weights/smollm2_135m.gguf

clean: ## remove .venv and caches; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
