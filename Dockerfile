# Training on GPUs: this repository at /app, in /app/.venv JAX with CUDA, and a Python 3.10 for the programs it judges.
#
#   docker build -t rlef-jax .                            # CUDA's libraries are jax[cuda12]'s wheels: some 6 GB
#   docker build -t rlef-jax --build-arg JAX_EXTRA= .     # for CPUs
#
# Of the host comes the GPU's driver alone (NVIDIA's container toolkit). The versions are those of constraints.txt. What
# a container must be allowed for the judge's levels of isolation: docs/cluster.md.
FROM python:3.10-slim-bookworm AS judged

FROM python:3.12-slim-bookworm
ARG JAX_EXTRA=cuda12

# Programs run in a root of the interpreter's files. ldconfig: its library is found there too, whatever /proc shows.
COPY --from=judged /usr/local /opt/python3.10
RUN ln -s /opt/python3.10/bin/python3.10 /usr/local/bin/python3.10 \
    && echo /opt/python3.10/lib >/etc/ld.so.conf.d/python3.10.conf \
    && ldconfig \
    && python3.10 -c 'import bz2, ctypes, decimal, lzma, sqlite3, ssl, zlib'

# First what the installation reads: a change of the code leaves this layer as it is.
WORKDIR /app
COPY setup.py pyproject.toml constraints.txt README.md ./
COPY scripts/jax_env.sh scripts/
COPY rlef_jax/__init__.py rlef_jax/
RUN python3.12 -m venv .venv \
    && PIP_NO_CACHE_DIR=1 sh scripts/jax_env.sh .venv "$JAX_EXTRA" -e '.[data]'
COPY . .

# A broken image isn't built.
RUN .venv/bin/python -c 'from rlef_jax.execution.interpreter import find_python; print(find_python("3.10", required=True))' \
    && .venv/bin/python -m rlef_jax.train --help >/dev/null

# What NVIDIA's container toolkit brings in: the driver's libraries and nvidia-smi.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
CMD [".venv/bin/python", "-m", "rlef_jax.train", "--help"]
