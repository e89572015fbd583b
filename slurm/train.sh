#!/usr/bin/env bash
# Train on a Slurm cluster:
#   sbatch --nodes 8 --gpus-per-node 8 --ntasks-per-node 8 slurm/train.sh --recipe NAME [key=value …]
#
# One task for each GPU, so that Slurm itself starts, binds and ends every process and sees each one's exit status. The run's folder
# (run_dir in the recipe) must lie on a file system that all nodes share. MTBI_ZERO names the DeepSpeed configuration, MTBI_VENV the
# virtual environment. Before the time limit, or when preempted, the run makes a checkpoint and is requeued; it goes on from there.
#SBATCH --job-name=mtbi
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --time=24:00:00
#SBATCH --signal=USR2@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:-$PWD}"
source "${MTBI_VENV:-.venv}/bin/activate"
export PYTHONUNBUFFERED=1

status=0
srun --kill-on-bad-exit=1 python mtbi/train.py --deepspeed "${MTBI_ZERO:-ds_configs/zero3.json}" "$@" || status=$?
# 75: stopped on request after a checkpoint.
if [[ $status == 75 ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
