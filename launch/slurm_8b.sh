#!/bin/bash
# Llama 3.1 8B on 36 nodes of 8 H100s: sbatch launch/slurm_8b.sh [--config.KEY=VALUE ...]
#
# The paper trains on 128 cards and samples on 160. Here every card does both in turn: the 36 nodes are one mesh, and each
# process samples its share of an iteration's rollouts with the weights gathered on its own card. `rlef_jax.plan` says
# what either costs.
#SBATCH --job-name=rlef-8b
#SBATCH --nodes=36
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@600
#SBATCH --requeue
#SBATCH --output=runs/%x-%j.log
. launch/slurm_common.sh
# 288 cards: fsdp within a node, where weights are gathered over NVLink, and data between nodes.
rlef_train --config=configs/llama31_8b.py --workdir="${WORKDIR:-runs/8b}" \
    --config.mesh.data=36 --config.mesh.fsdp=8 --config.ppo.microbatch_rows=288 "$@"
