#!/usr/bin/env bash
# Compute word times of a corpus on a Slurm cluster. Each task of the array aligns its part of the manifest:
#   sbatch --array=1-64 slurm/align.sh MANIFEST OUT.jsonl --model openai/whisper-base
# A task that was killed, requeued or submitted again keeps finished parts. The last task to finish joins all parts in OUT.jsonl.
#SBATCH --job-name=mtbi-align
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%A_%a.out
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$PWD}"
source "${MTBI_VENV:-.venv}/bin/activate"
exec mtbi data align "$@" --part "$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN + 1))/$SLURM_ARRAY_TASK_COUNT"
