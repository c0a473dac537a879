#!/usr/bin/env bash
# NaviGen's text half on the generated store, behind scripts/quickstart.sh: textual identifiers, a teacher's texts, two stages of
# training, instructions for users, how good they are.
#   reads   $DATA_ROOT/toystore, $OUTPUT_ROOT/$RUN/sft_recommend of the quickstart
#   writes  $DATA_ROOT/toystore/{tids/keywords,reasoning/keywords_*,examples/dual}, $OUTPUT_ROOT/$RUN/{sft_identifiers,sft_dual},
#           $OUTPUT_ROOT/$RUN/instructions/sft_dual.test, its metrics/metrics.json
#   takes   what configs/toy/README.md says of its parts, 2 cores, no GPU
# No model teaches here: keywords are the TIDs, rules write the texts, and every row says so. With a chat model: configs/navigen.
# Every stage that is finished is kept: run it again after an interruption and it goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/flags.sh
no_flags "$@"

# A shell's own settings are not the quickstart's.
unset MEMBERS MODEL CHECKPOINT EXAMPLES STAGE STAGES NAME SPLIT INSTRUCT_MODE CONFIG CAPTIONS REASONING TASKS NUM_GPUS NUM_NODES NODE_RANK SUBMIT DRY_RUN ENGINE ACCELERATE_CONFIG SIZE CARD TRACKER TEACHER ASK_ARGS SEARCH_ARGS DISTILL_ARGS EVALUATE_ARGS GRADE_ARGS
export PAPER=toy DATASET=toystore SIDS=rqkmeans TIDS=keywords RUN=${RUN:-quickstart}
source scripts/env.sh
export PYTHON DATA_ROOT OUTPUT_ROOT
TRAINED=$OUTPUT_ROOT/$RUN/sft_recommend/final
if [ ! -d "$TRAINED" ]; then
    echo "ERROR 2: there is no $TRAINED -> run scripts/quickstart.sh first" >&2
    exit 2
fi

bash scripts/05_generate_tids.sh
bash scripts/06_write_reasoning.sh
# Instructions without thoughts: a thought of a hundred words would fill this small model's context.
TASKS=dual bash scripts/07_build_examples.sh --reasoning "$(list_of "$DATA_ROOT/toystore/reasoning/keywords_instructions")"
export EXAMPLES=dual
STAGE=identifiers MODEL=$TRAINED bash sft.sh
STAGE=dual bash sft.sh
bash scripts/12_instruct.sh
