#!/usr/bin/env bash
# Import, align, describe, shard or encode a corpus on a Slurm cluster. Each task of the array takes its part:
#   sbatch --array=1-64 slurm/data.sh import gigaspeech /corpora/GigaSpeech work/train
#   sbatch --array=1-64 slurm/data.sh shard work/train/aligned.jsonl work/train/behaviour s3://bucket/train --recipe NAME
#   sbatch --array=1-64 --gpus=1 slurm/data.sh encode s3://bucket/train s3://bucket/features --recipe NAME
# A task that was killed, requeued or submitted again keeps finished parts, and begins its own again. The last task to finish joins
# all parts. Answers have a script of their own, slurm/behave.sh: with as many parts, each task of `shard` reads one of its parts.
#SBATCH --job-name=mtbi-data
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%A_%a.out
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$PWD}"
source "${MTBI_VENV:-.venv}/bin/activate"
exec mtbi data "$1" --part "$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN + 1))/$SLURM_ARRAY_TASK_COUNT" "${@:2}"
