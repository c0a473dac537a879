#!/usr/bin/env bash
# The whole chain on the generated store: set-up, stages 01 02 04 07 08 09 10 11, baselines, results page.
#   reads   nothing
#   writes  .venv, $DATA_ROOT/toystore, $OUTPUT_ROOT/$RUN, its report/index.html
#   takes   about two minutes of installation once, then the minutes that the README states, 2 cores, no GPU
# Every stage that is finished is kept: run it again after an interruption and it goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/flags.sh
no_flags "$@"
bash scripts/setup.sh
export PYTHON="$PWD/.venv/bin/python"

# A shell's own settings are not the quickstart's.
unset MEMBERS MODEL CHECKPOINT EXAMPLES STAGE STAGES NAME SPLIT MODE CONFIG EMBED QUANTIZER NUM_GPUS NUM_NODES NODE_RANK SUBMIT DRY_RUN ENGINE ACCELERATE_CONFIG SIZE CARD TRACKER TASKS TIDS REASONING TEACHER ASSIGN_ARGS EXPAND_ARGS EVALUATE_ARGS
export PAPER=toy DATASET=toystore SIDS=rqkmeans EMBEDDINGS=text_cooc RUN=${RUN:-quickstart}
source scripts/env.sh
export DATA_ROOT OUTPUT_ROOT
export RAW=$DATA_ROOT/toystore/raw

"$PYTHON" -m data.toy --size small --output_dir "$RAW"
STAGES="01 02 04 07 baselines 08 09 11 10 11" bash scripts/chain.sh
