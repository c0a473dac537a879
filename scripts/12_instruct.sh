#!/usr/bin/env bash
# 12  The next item's terms and an instruction for a picture or video of it, for every user; how good they are.
#   reads   $MODEL (the final/ of a training stage), $DATA_ROOT/$DATASET, its {examples/$EXAMPLES,sids/$SIDS,tids/$TIDS}
#   writes  $OUTPUT_ROOT/$RUN/instructions/$NAME.$SPLIT[.$INSTRUCT_MODE]/{instructions.parquet,instructions.jsonl,metrics/metrics.json}
#   takes   a step of the model per token of an instruction and a batch of rows; infer/README.md has a measured run
# Edit the variables, or override:
#   DATASET=office bash scripts/12_instruct.sh --max_rows 1000
#   DATASET=office INSTRUCT_MODE=two_stage NUM_GPUS=4 bash scripts/12_instruct.sh --think.thoughts 4 --think.temperature 0.7
#   GRADE_ARGS="--judge.client.backend openai --judge.client.model qwen3.5-flash" bash scripts/12_instruct.sh     # a judge too
#   PAPER=toy DATASET=toystore RUN=quickstart TIDS=keywords bash scripts/12_instruct.sh
# --overwrite and --help reach both programs.
set -euo pipefail

PAPER=${PAPER:-navigen}
DATASET=${DATASET:-industrial}
SIDS=${SIDS:-rqkmeans}
TIDS=${TIDS:-terms}
EXAMPLES=${EXAMPLES:-dual}
RUN=${RUN:-$PAPER-$DATASET}
NAME=${NAME:-sft_dual}              # names the output, and the stage whose model it is unless MODEL says
SPLIT=${SPLIT:-test}                # test | valid
INSTRUCT_MODE=${INSTRUCT_MODE:-direct_json_prefix}  # direct_json_prefix | two_stage (a thought first)
NUM_GPUS=${NUM_GPUS:-1}
GRADE_ARGS=${GRADE_ARGS:-}          # flags of infer.grade; trailing flags go to infer.instruct
source "$(dirname "$0")/env.sh"
MODEL=${MODEL:-$OUTPUT_ROOT/$RUN/$NAME/final}
INSTRUCTIONS=$OUTPUT_ROOT/$RUN/instructions/$NAME.$SPLIT
if [ "$INSTRUCT_MODE" != direct_json_prefix ]; then INSTRUCTIONS=$INSTRUCTIONS.$INSTRUCT_MODE; fi

share_flags "infer.instruct infer.grade" "$@"
config_flags instruct
launch infer.instruct "${CONFIGS[@]}" --model "$MODEL" --split "$SPLIT" --mode "$INSTRUCT_MODE" \
    --sids "$DATA_ROOT/$DATASET/sids/$SIDS" --tids "$DATA_ROOT/$DATASET/tids/$TIDS" \
    --examples "$DATA_ROOT/$DATASET/examples/$EXAMPLES" --output_dir "$INSTRUCTIONS" "$@"
# shellcheck disable=SC2086
alone infer.grade --instructions "$INSTRUCTIONS" --tids "$DATA_ROOT/$DATASET/tids/$TIDS" ${SHARED[@]+"${SHARED[@]}"} $GRADE_ARGS
