#!/usr/bin/env bash
# Train on a Slurm cluster:
#   sbatch --nodes 8 --gpus-per-node 8 --ntasks-per-node 8 slurm/train.sh --recipe NAME [key=value …]
#
# One task for each GPU, so that Slurm itself starts, binds and ends every process and sees each one's exit status. The run's folder
# (run_dir in the recipe) should lie on a file system that all nodes share: after a requeue another node may come first.
#   MTBI_ZERO     the DeepSpeed configuration (default ds_configs/zero3.json)
#   MTBI_VENV     the virtual environment (default .venv)
#   MTBI_LOGS     folder of the logs (default logs)
#   MTBI_RETRIES  times a job that failed may start again without a new checkpoint in between (default 3)
# Before the time limit, or when preempted, the run makes a checkpoint and is requeued; a killed or hung process, or a lost node,
# requeues it too. It goes on from its newest whole checkpoint. Each process writes LOGS/JOB/START/rank-N.log; the first one's is
# shown here.
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
export MTBI_FAILURES=$job/failures # emptied by each checkpoint

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
