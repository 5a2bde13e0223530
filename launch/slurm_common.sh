# What the SLURM scripts share: sourced by them, not to be submitted.
#
# One process a GPU, so that each talks to the card and the network adapter next to it. JAX finds out from SLURM who is
# who (RLEF_JAX_PROCESSES=auto). A process that dies ends the step (--kill-on-bad-exit) and the job, with its code.
# SIGTERM comes ten minutes before the limit: the run saves at the end of its iteration and exits with 75, and the job is
# put back into the queue, where it goes on from that checkpoint. (#SBATCH --requeue alone does so after a node's failure
# or a preemption only.) At most RLEF_JAX_REQUEUES times, 100 by default: a job that is always stopped must end.
set -eu
cd "${RLEF_JAX_HOME:-$SLURM_SUBMIT_DIR}"
export RLEF_JAX_PROCESSES=auto

# XLA has its defaults: the flags that were tried make the compiled programs no better (docs/hardware.md). XLA_FLAGS that
# are set go to the run, as they do to rlef_jax.plan.

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

# The processes of a stopped run exit with 75 one after the other. The first would have the others killed, and the step's
# code would be a signal's: so each leaves a note where the script sees it, and ends well.
STOPPED=runs/.stopped-$SLURM_JOB_ID
STEP='"$@"; code=$?; if ((code == 75)) && mkdir -p runs && : >"$STOPPED"; then code=0; fi; exit $code'

rlef_train() {
    # One program a GPU: SLURM binds each to the cores next to its card.
    local code=0
    rm -f "$STOPPED"
    STOPPED=$STOPPED srun --kill-on-bad-exit=1 --wait=60 --cpu-bind=cores \
        bash -c "$STEP" step .venv/bin/python -m rlef_jax.train "$@" || code=$?
    if ((code == 0)) && [ -e "$STOPPED" ]; then code=75; fi
    rm -f "$STOPPED"
    if ((code == 75)); then requeue; fi
    exit "$code"
}

requeue() {
    local done=${SLURM_RESTART_COUNT:-0}
    if ((done >= ${RLEF_JAX_REQUEUES:-100})); then
        echo "stopped after a checkpoint, and requeued $done times already: submit again to go on" >&2
    elif scontrol requeue "$SLURM_JOB_ID"; then
        echo "stopped after a checkpoint: job $SLURM_JOB_ID is back in the queue" >&2
    else
        echo "stopped after a checkpoint, and this cluster doesn't requeue jobs: submit again to go on" >&2
    fi
}
