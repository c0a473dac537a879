#!/usr/bin/env bash
# 11  Constrained recommendation, metrics, results page.
#   reads   $MODEL (the final/ of a training stage), $DATA_ROOT/$DATASET, its {examples/$EXAMPLES,sids/$SIDS}
#   writes  $OUTPUT_ROOT/$RUN/eval/$NAME.$SPLIT[.$MODE]/{predictions-*.parquet,metrics/metrics.json}, $OUTPUT_ROOT/$RUN/report/index.html
#   takes   a minute or two on a laptop for 5,000 users and 50 beams (README)
# Edit the variables, or override:
#   DATASET=office NAME=sft_recommend SPLIT=valid bash evaluate.sh
#   NAME=beams10 MODEL=outputs/minionerec-industrial/grpo/final bash evaluate.sh --decode.beams 10
#   RUN=qwen3 NAME=sft_pretrained EXAMPLES=sentence NUM_GPUS=4 bash evaluate.sh
#   PAPER=toy DATASET=toystore RUN=quickstart bash evaluate.sh
# --overwrite reaches recommend and evaluate (the report is always made anew), --help all three.
set -euo pipefail

PAPER=${PAPER:-minionerec}
DATASET=${DATASET:-industrial}
SIDS=${SIDS:-rqkmeans}
EXAMPLES=${EXAMPLES:-$SIDS}
RUN=${RUN:-$PAPER-$DATASET}
NAME=${NAME:-grpo}                  # names the output, and the stage whose model it is unless MODEL says: grpo | sft_recommend | ...
SPLIT=${SPLIT:-test}                # test | valid
MODE=${MODE:-direct}                # direct | empty_think | think (thoughts before the semantic IDs) | race (think and direct as one list)
NUM_GPUS=${NUM_GPUS:-1}
EVALUATE_ARGS=${EVALUATE_ARGS:-}    # flags of infer.evaluate; trailing flags go to infer.recommend
source "$(dirname "$0")/scripts/env.sh"
MODEL=${MODEL:-$OUTPUT_ROOT/$RUN/$NAME/final}
PREDICTIONS=$OUTPUT_ROOT/$RUN/eval/$NAME.$SPLIT
if [ "$MODE" != direct ]; then PREDICTIONS=$PREDICTIONS.$MODE; fi

share_flags "infer.recommend infer.evaluate infer.report" "$@"
config_flags recommend
launch infer.recommend "${CONFIGS[@]}" --model "$MODEL" --split "$SPLIT" --mode "$MODE" \
    --sids "$DATA_ROOT/$DATASET/sids/$SIDS" --examples "$DATA_ROOT/$DATASET/examples/$EXAMPLES" \
    --output_dir "$PREDICTIONS" "$@"
# shellcheck disable=SC2086
alone infer.evaluate --predictions "$PREDICTIONS" --data "$DATA_ROOT/$DATASET" \
    --sids "$DATA_ROOT/$DATASET/sids/$SIDS" ${SHARED[@]+"${SHARED[@]}"} $EVALUATE_ARGS
alone infer.report --data "$DATA_ROOT/$DATASET" --sids "$DATA_ROOT/$DATASET/sids/$SIDS" \
    --run "$OUTPUT_ROOT/$RUN" --output_dir "$OUTPUT_ROOT/$RUN/report"
