#!/usr/bin/env bash
# 07  Sequences + semantic IDs -> training and evaluation examples.
#   reads   $DATA_ROOT/$DATASET, its sids/$SIDS; with TASKS its tids/$TIDS, with TASKS=dual, align or think its reasoning/${REASONING}_*
#   writes  $DATA_ROOT/$DATASET/examples/$EXAMPLES/{train,valid,test}.parquet
#   takes   seconds per 100,000 rows
# Edit the variables, or override:
#   DATASET=office SIDS=balanced bash scripts/07_build_examples.sh
#   EXAMPLES=sentence bash scripts/07_build_examples.sh --wording sentence        # for a pretrained base model
#   EXAMPLES=mixed bash scripts/07_build_examples.sh --tasks '{history_to_sid: 1, title_to_sid: 1, titles_to_sid: 0.25}'   # train/README.md
#   PAPER=navigen TASKS=identifiers TIDS=terms bash scripts/07_build_examples.sh   # examples_identifiers.yaml -> examples/identifiers
#   PAPER=navigen TASKS=dual TIDS=terms bash scripts/07_build_examples.sh          # with thoughts and instructions of stage 06
#   PAPER=sidreasoner TASKS=align bash scripts/07_build_examples.sh                # with narratives of items and rows of stage 06
#   PAPER=sidreasoner TASKS=think bash scripts/07_build_examples.sh                # with the reasoning over histories
#   PAPER=toy DATASET=toystore bash scripts/07_build_examples.sh
set -euo pipefail

PAPER=${PAPER:-minionerec}
DATASET=${DATASET:-industrial}
SIDS=${SIDS:-rqkmeans}
TASKS=${TASKS:-}                    # which config: examples_$TASKS.yaml; empty = examples.yaml
TIDS=${TIDS:-terms}                 # of stage 05, with TASKS
REASONING=${REASONING:-}            # of stage 06: empty = $TIDS with TASKS=dual, teacher with TASKS=align and think
EXAMPLES=${EXAMPLES:-${TASKS:-$SIDS}}   # names the directory
source "$(dirname "$0")/env.sh"

config_flags "examples${TASKS:+_$TASKS}"
given=()
made=$DATA_ROOT/$DATASET/reasoning/${REASONING:-teacher}
case $TASKS in
    "") ;;
    align) given=(--reasoning "$(list_of "${made}_items" "${made}_narratives")") ;;
    think) given=(--reasoning "$(list_of "${made}_histories")") ;;
    *)
        given=(--tids "$DATA_ROOT/$DATASET/tids/$TIDS")
        made=$DATA_ROOT/$DATASET/reasoning/${REASONING:-$TIDS}
        if [ "$TASKS" = dual ]; then
            given+=(--reasoning "$(list_of "${made}_identifiers" "${made}_instructions" "${made}_thoughts")")
        fi
        ;;
esac
"$PYTHON" -m preprocess.build_examples "${CONFIGS[@]}" ${given[@]+"${given[@]}"} --data "$DATA_ROOT/$DATASET" \
    --sids "$DATA_ROOT/$DATASET/sids/$SIDS" --output_dir "$DATA_ROOT/$DATASET/examples/$EXAMPLES" "$@"
