#!/usr/bin/env bash
# Set-up, lint and tests: everything a change must pass.
#   bash scripts/test.sh                   what runs on any machine in minutes
#   bash scripts/test.sh --all             the long tests too, and those for a GPU where there is one; the kill matrix alone takes
#                                          hours: it keeps outputs/kill_matrix.json and goes on where it was cut off
#                                          (--all -k kill_matrix for it alone, KILL_RECORD=elsewhere.json)
#   bash scripts/test.sh -k trie -x        further arguments go to pytest
# Two workers, a file of tests at a time; `-n 0` runs them in one process.
# Exit code: 0 when lint, format and tests pass; set-up's own (2, 3, 130) when it fails; 1 otherwise.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/flags.sh
case ${1:-} in -h | --help) no_flags "$1" ;; esac      # pytest's own: --all --help

choice="not long and not gpu"
if [ "${1:-}" = --all ]; then
    shift
    export KILL_RECORD=${KILL_RECORD:-outputs/kill_matrix.json}
    if nvidia-smi -L >/dev/null 2>&1; then choice=""; else choice="not gpu"; fi
fi
bash scripts/setup.sh --dev
# Tests choose their own data, runs and interpreter, whatever the shell that starts them has exported.
unset PAPER DATASET CONFIG MEMBERS CHECKPOINT RAW EMBED EMBEDDINGS QUANTIZER SIDS EXAMPLES RUN STAGE STAGES NAME MODEL NUM_GPUS NUM_NODES NODE_RANK SUBMIT DRY_RUN ENGINE ACCELERATE_CONFIG SIZE CARD TRACKER DATA_ROOT OUTPUT_ROOT TASKS TIDS REASONING TEACHER CAPTIONS SPLIT MODE INSTRUCT_MODE SOURCE MAKER CLIP ITEM_IMAGES IMAGE_MODEL VIDEO_MODEL WEIGHTS PLAN PLAN_MINUTES PLAN_SPEED OVERWRITE SEQUENTIAL TEACHER_SEEDS TREND MODELS SPLITS
export PYTHON="$PWD/.venv/bin/python"
source scripts/env.sh

failed=""
"$PYTHON" -m ruff check . || failed="$failed lint"
"$PYTHON" -m ruff format --check . || failed="$failed format"
"$PYTHON" -m pytest -m "$choice" -n 2 --dist loadfile --no-loadscope-reorder --durations=10 "$@" || failed="$failed tests"
if [ -n "$failed" ]; then
    echo "test.sh: FAILED:$failed ($SECONDS s)"
    exit 1
fi
echo "test.sh: passed ($SECONDS s)"
