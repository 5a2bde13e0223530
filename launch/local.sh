#!/usr/bin/env bash
# Trains with N processes on this machine: launch/local.sh N CONFIG [WORKDIR] [more flags of rlef_jax.train]
#
#   launch/local.sh 4 configs/tiny.py runs/four
#
# On CPUs each process gets one device and the mesh's `data` axis is N; on GPUs each gets one card. The job stops as a
# whole: when a process dies, the others are ended within seconds. SIGINT and SIGTERM are passed on: the run saves at the
# end of its iteration. Either way the same command goes on from the last checkpoint.
set -u
if [ $# -lt 2 ]; then sed -n '2,4p' "$0" | cut -c3- >&2; exit 2; fi
processes=$1 config=$2 workdir=${3:-runs/local}
shift $(($# < 3 ? $# : 3))
python=${PYTHON:-$(dirname "$0")/../.venv/bin/python}
GRACE_S=10 # for the others, between SIGTERM and SIGKILL, once a process has died

# A free port for the coordinator, which is process 0.
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])') || exit 2
export RLEF_JAX_COORDINATOR=127.0.0.1:$port RLEF_JAX_PROCESSES=$processes
# Trimming and small pages cost training up to a third of its speed under glibc's defaults (docs/lab/update.md).
# One arena: a program's buffers come from the heap that the last one's went back to, whichever thread asks.
export GLIBC_TUNABLES=glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=268435456:glibc.malloc.arena_max=1

pids=()
for ((i = 0; i < processes; i++)); do
    RLEF_JAX_PROCESS=$i CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-$i} \
        "$python" -m rlef_jax.train --config="$config" --workdir="$workdir" --config.mesh.data="$processes" "$@" &
    pids+=($!)
done

signalled=0
pass_on() { signalled=1; kill -TERM "${pids[@]}" 2>/dev/null; }
trap pass_on INT TERM

# Looked at one by one: `wait -n` misses processes that end together, and would wait for them for ever.
code=0
while ((${#pids[@]} > 0)); do
    sleep 0.2
    worst=0
    for i in "${!pids[@]}"; do
        if kill -0 "${pids[$i]}" 2>/dev/null; then continue; fi
        wait "${pids[$i]}"
        status=$?
        unset "pids[$i]"
        # Of those that ended together, a signal's 128 and more is the cause, the others' errors what came of it.
        if ((status > worst)); then worst=$status number=$i; fi
    done
    if ((worst == 0 || code != 0)); then continue; fi
    code=$worst
    if ((worst != 75 && signalled == 0)); then
        echo "process $number of $processes ended with code $worst: stopping the job;" \
            "the same command goes on from its last checkpoint" >&2
        kill -TERM "${pids[@]}" 2>/dev/null
        (sleep $GRACE_S; kill -KILL "${pids[@]}") >/dev/null 2>&1 &
    fi
done
exit "$code"
