#!/bin/bash
# Llama 3.1 70B on 288 nodes of 8 H100s: sbatch launch/slurm_70b.sh [--config.KEY=VALUE ...]
#
# The paper trains on 1024 cards and samples on 1280. Here every card trains. Sampling needs the 140 GB of weights over
# several cards, which this package's sampler does not do yet: the script is for the update, see docs/cluster.md.
#SBATCH --job-name=rlef-70b
#SBATCH --nodes=288
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@600
#SBATCH --requeue
#SBATCH --output=runs/%x-%j.log
. launch/slurm_common.sh
# 2304 cards: tensor within a node (its exchanges are in every layer), fsdp over eight nodes, data over 36 such groups.
rlef_train --config=configs/llama31_70b.py --workdir="${WORKDIR:-runs/70b}" \
    --config.mesh.data=36 --config.mesh.fsdp=8 --config.mesh.tensor=8 --config.ppo.microbatch_rows=288 "$@"
