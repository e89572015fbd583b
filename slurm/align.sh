#!/usr/bin/env bash
# Word times of a corpus, a stretch of the manifest for each task of an array:
#   sbatch --array=1-64 slurm/align.sh MANIFEST OUT.jsonl --model CTC_MODEL
# Tasks may be killed, requeued and submitted again: finished parts are kept. The last one to finish joins them in OUT.jsonl.
#SBATCH --job-name=mtbi-align
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%A_%a.out
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$PWD}"
source "${MTBI_VENV:-.venv}/bin/activate"
exec mtbi data align "$@" --part "$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN + 1))/$SLURM_ARRAY_TASK_COUNT"
