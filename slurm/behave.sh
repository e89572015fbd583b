#!/usr/bin/env bash
# Generate the text LLM's answers about a corpus on a Slurm cluster. Each task of the array answers for its part of the manifest:
#   sbatch --array=1-64 --gpus=1 slurm/behave.sh MANIFEST OUT --recipe NAME [key=value …]
# An LLM that is larger than one GPU: --gpus=4, with behaviour.backend=vllm behaviour.tensor_parallel=4.
# A task that was killed, requeued or submitted again goes on from the answers in its part of OUT. `mtbi data shard` reads OUT once
# all parts are complete.
#SBATCH --job-name=mtbi-behave
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%A_%a.out
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$PWD}"
source "${MTBI_VENV:-.venv}/bin/activate"
exec mtbi behave "$@" --part "$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN + 1))/$SLURM_ARRAY_TASK_COUNT"
