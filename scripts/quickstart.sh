#!/usr/bin/env bash
# The whole chain on the generated store: semantic IDs, floors, an ensemble, the generator that it teaches, a language model of the same
# semantic IDs (SFT, GRPO), one results page.
#   reads   nothing
#   writes  .venv, $DATA_ROOT/toystore, $OUTPUT_ROOT/$RUN and $RUN-s0 (the ensemble's sequential model), its report/index.html
#   takes   about two minutes of installation once, then the minutes that the README states, 2 cores, no GPU
# Every stage that is finished is kept: run it again after an interruption and it goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/flags.sh
no_flags "$@"
bash scripts/setup.sh
export PYTHON="$PWD/.venv/bin/python"

# A shell's own settings are not the quickstart's.
unset MEMBERS MODEL CHECKPOINT EXAMPLES STAGE STAGES NAME SPLIT MODE CONFIG EMBED QUANTIZER NUM_GPUS NUM_NODES NODE_RANK SUBMIT DRY_RUN ENGINE ACCELERATE_CONFIG SIZE CARD TRACKER TASKS TIDS REASONING TEACHER PLAN PLAN_MINUTES PLAN_SPEED OVERWRITE WEIGHTS MODELS ASSIGN_ARGS EXPAND_ARGS RECOMMEND_ARGS EVALUATE_ARGS
export PAPER=toy DATASET=toystore SIDS=rqkmeans EMBEDDINGS=text_cooc RUN=${RUN:-quickstart}
export SEQUENTIAL=text TEACHER_SEEDS=0 TREND=trend SPLITS=test
source scripts/env.sh
export DATA_ROOT OUTPUT_ROOT
export RAW=$DATA_ROOT/toystore/raw

"$PYTHON" -m data.toy --size small --output_dir "$RAW"
MODELS="pop last recent itemknn itemknn_tuned mixture" STAGES="01 02 04 07 baselines" bash scripts/chain.sh
STAGES=teacher bash scripts/chain.sh
# The ensemble on test, which nothing chose it by.
"$PYTHON" -m infer.run_baselines --models "$(list_of "$OUTPUT_ROOT/$RUN/baselines/teacher")" --data "$DATA_ROOT/$DATASET" \
    --output_root "$OUTPUT_ROOT/$RUN/eval" --splits '[test]'
"$PYTHON" -m infer.evaluate --predictions "$OUTPUT_ROOT/$RUN/eval/teacher.test" --data "$DATA_ROOT/$DATASET" --sids "$DATA_ROOT/$DATASET/sids/$SIDS"
STAGES="generator 08 09 11 10 11" bash scripts/chain.sh
