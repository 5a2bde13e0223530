# What the SLURM scripts share: sourced by them, not to be submitted.
#
# One process a GPU, so that each talks to the card and the network adapter next to it. JAX finds out from SLURM who is
# who (RLEF_JAX_PROCESSES=auto). A process that dies ends the step (--kill-on-bad-exit), the job is requeued where the
# cluster allows it, and the same command goes on from the last checkpoint. SIGTERM comes ten minutes before the limit:
# the run saves at the end of its iteration.
set -eu
cd "${RLEF_JAX_HOME:-$SLURM_SUBMIT_DIR}"
export RLEF_JAX_PROCESSES=auto

# --- XLA on GPUs --------------------------------------------------------------------------------------------------------
XLA_FLAGS=""
# Collectives run beside arithmetic instead of between: what fsdp gathers for the next layer hides behind this one.
XLA_FLAGS+=" --xla_gpu_enable_latency_hiding_scheduler=true"
# One large gather or reduction instead of many small ones: a layer's weights travel together.
XLA_FLAGS+=" --xla_gpu_all_gather_combine_threshold_bytes=536870912"
XLA_FLAGS+=" --xla_gpu_reduce_scatter_combine_threshold_bytes=536870912"
XLA_FLAGS+=" --xla_gpu_all_reduce_combine_threshold_bytes=536870912"
# In the scan over layers, the exchange of one step overlaps with the arithmetic of the next.
XLA_FLAGS+=" --xla_gpu_enable_pipelined_all_gather=true --xla_gpu_enable_pipelined_reduce_scatter=true"
# Weights gathered for one layer and for the next lie in buffers of their own, so that the two overlap.
XLA_FLAGS+=" --xla_gpu_enable_while_loop_double_buffering=true"
export XLA_FLAGS

# --- memory -------------------------------------------------------------------------------------------------------------
# All of the card at once: growing the pool later fragments it. The rest is for NCCL's own buffers and cuDNN.
export XLA_PYTHON_CLIENT_PREALLOCATE=true XLA_PYTHON_CLIENT_MEM_FRACTION=0.92
# NCCL registers buffers with the network adapter instead of copying through its own.
export NCCL_NVLS_ENABLE=1 NCCL_CUMEM_ENABLE=1
# The host: packing and tokens; see the Makefile's MALLOC.
export GLIBC_TUNABLES=glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=268435456

# --- cards --------------------------------------------------------------------------------------------------------------
# One queue of work a card keeps collectives in the order in which they were issued.
export CUDA_DEVICE_MAX_CONNECTIONS=1

rlef_train() {
    # One program a GPU: SLURM binds each to the cores next to its card.
    srun --kill-on-bad-exit=1 --wait=20 --cpu-bind=cores .venv/bin/python -m rlef_jax.train "$@"
}
