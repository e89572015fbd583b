#!/usr/bin/env bash
# Train on a Slurm cluster:
#   sbatch --nodes 8 --gpus-per-node 8 --ntasks-per-node 8 slurm/train.sh --recipe NAME [key=value …]
#
# One task for each GPU: Slurm starts and binds every process and sees its exit status. The run's folder (run_dir in the recipe)
# should be on a file system that all nodes share, because after a requeue another node may come first.
#   MTBI_ZERO     the DeepSpeed configuration (default ds_configs/zero3.json)
#   MTBI_VENV     the virtual environment (default .venv)
#   MTBI_LOGS     folder of the logs (default logs)
#   MTBI_RETRIES  how often a failed job may start again without a new checkpoint in between (default 3)
# Before the time limit, or when preempted, the run writes a checkpoint and the job is requeued. A killed process, a hung process
# and a lost node requeue it too. The next start goes on from the newest checkpoint that is whole. Each process writes
# LOGS/JOB/START/rank-N.log. The log of rank 0 is also the job's output.
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
job=$(realpath -m "${MTBI_LOGS:-logs}")/$SLURM_JOB_ID
logs=$job/${SLURM_RESTART_COUNT:-0}
mkdir -p "$logs"
export MTBI_FAILURES=$job/failures # a line for each failure; each checkpoint deletes it

touch "$logs/rank-0.log"
tail --follow=name --lines=+1 --quiet "$logs/rank-0.log" &
tail=$!
status=0
srun --kill-on-bad-exit=1 --wait=1800 --output="$logs/rank-%t.log" --error="$logs/rank-%t.log" \
    python mtbi/train.py --deepspeed "${MTBI_ZERO:-ds_configs/zero3.json}" "$@" 2> >(tee "$logs/srun.err" >&2) || status=$?
sleep 1
kill "$tail"
python -m launcher.after "$status" --logs "$logs" --failures "$MTBI_FAILURES" --retries "${MTBI_RETRIES:-3}" \
    ${MTBI_WHOLE_SCRIPT:+--script "$0"}
