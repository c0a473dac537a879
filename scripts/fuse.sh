#!/usr/bin/env bash
# Several models as one: product, mixture or pooled lists of item models and of predictions, and its metrics.
#   reads   $OUTPUT_ROOT/$RUN/baselines/{$MEMBERS}, or for names that are not there eval/{$MEMBERS}.{valid,test} (a model with
#           semantic IDs), $DATA_ROOT/$DATASET, its sids/$SIDS (for SID-level metrics)
#   writes  $OUTPUT_ROOT/$RUN/baselines/$NAME and eval/$NAME.{$SPLITS}, each with metrics/
#   takes   seconds for thousands of items and rows; fitted weights some five passes over the valid rows
# Edit the variables, or override:
#   MEMBERS=mixture,text NAME=floor_text bash scripts/fuse.sh --how mixture --weights em
#   MEMBERS=mixture,text,trend WEIGHTS=likelihood NAME=weighed bash scripts/fuse.sh
#   MEMBERS=text,grpo NAME=pooled bash scripts/fuse.sh --how pool --pool_k 50
# A member with a / is a directory of its own, of another run say. --overwrite and --help reach both programs.
set -euo pipefail

PAPER=${PAPER:-minionerec}
DATASET=${DATASET:-industrial}
SIDS=${SIDS:-rqkmeans}
RUN=${RUN:-$PAPER-$DATASET}
NAME=${NAME:-fused}
MEMBERS=${MEMBERS:-mixture,text}    # names or directories, separated by commas
WEIGHTS=${WEIGHTS:-}                # likelihood | em (with --how mixture) | [1,0.5]; empty: equal ones
SPLITS=${SPLIT:-${SPLITS:-test}}    # which rows are answered and measured: test | valid | valid test; SPLIT is one of them, and wins
EVALUATE_ARGS=${EVALUATE_ARGS:-}    # flags of infer.evaluate; trailing flags go to infer.fuse
source "$(dirname "$0")/env.sh"

share_flags "infer.fuse infer.evaluate" "$@"
need_sids
folders=()
IFS=, read -ra names <<< "$MEMBERS"
for name in "${names[@]}"; do
    found=()
    for split in valid test; do
        if [ -e "$OUTPUT_ROOT/$RUN/eval/$name.$split/manifest.json" ]; then found+=("$OUTPUT_ROOT/$RUN/eval/$name.$split"); fi
    done
    if [[ $name == */* ]]; then
        folders+=("$name")
    elif [ -e "$OUTPUT_ROOT/$RUN/baselines/$name" ] || [ "${#found[@]}" -eq 0 ]; then
        folders+=("$OUTPUT_ROOT/$RUN/baselines/$name")
    else
        folders+=("${found[@]}")
    fi
done

"$PYTHON" -m infer.fuse --members "$(list_of "${folders[@]}")" --data "$DATA_ROOT/$DATASET" --splits "[${SPLITS// /,}]" \
    --output_dir "$OUTPUT_ROOT/$RUN/baselines/$NAME" --output_root "$OUTPUT_ROOT/$RUN/eval" ${WEIGHTS:+--weights "$WEIGHTS"} "$@"
for split in $SPLITS; do
    # shellcheck disable=SC2086
    "$PYTHON" -m infer.evaluate --predictions "$OUTPUT_ROOT/$RUN/eval/$NAME.$split" --data "$DATA_ROOT/$DATASET" \
        --sids "$DATA_ROOT/$DATASET/sids/$SIDS" ${SHARED[@]+"${SHARED[@]}"} $EVALUATE_ARGS
done
