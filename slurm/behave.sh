#!/usr/bin/env bash
# The text LLM's answers about a corpus, a stretch of the manifest for each task of an array:
#   sbatch --array=1-64 --gpus=1 slurm/behave.sh MANIFEST OUT --recipe NAME [key=value …]
# Tasks may be killed, requeued and submitted again: each goes on from what its part of OUT holds. `mtbi data shard` reads OUT
# when all parts are there.
#SBATCH --job-name=mtbi-behave
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%A_%a.out
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$PWD}"
source "${MTBI_VENV:-.venv}/bin/activate"
exec mtbi behave "$@" --part "$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN + 1))/$SLURM_ARRAY_TASK_COUNT"
