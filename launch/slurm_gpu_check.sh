#!/bin/bash
# `make gpu-check` on two nodes of 8 H100s: sbatch launch/slurm_gpu_check.sh [--init=FOLDER ...]
#
# The update's gradients over both nodes against one card's, and the speeds of one process a card, as a run has them.
#SBATCH --job-name=rlef-gpu-check
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --exclusive
#SBATCH --time=01:00:00
#SBATCH --output=runs/%x-%j.log
. launch/slurm_common.sh
srun --kill-on-bad-exit=1 --cpu-bind=cores .venv/bin/python benchmarks/gpu_check.py "$@"
