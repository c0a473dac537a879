#!/usr/bin/env bash
# The compact generator of semantic IDs, from hard targets or from a teacher's; its decoded predictions and metrics.
#   reads   $DATA_ROOT/$DATASET (01), its {sids/$SIDS (04),examples/$EXAMPLES (07)}, configs/$PAPER/$NAME.yaml, $TEACHER (an item
#           model: scripts/train_teacher.sh makes one)
#   writes  $OUTPUT_ROOT/$RUN/baselines/$NAME and eval/$NAME.{$SPLITS}, each with metrics/; the teacher's scores beside it
#   takes   minutes on one CPU thread for thousands of items and users
# Edit the variables, or override:
#   NAME=compact RUN=seed1 bash scripts/train_compact.sh --seed 1
#   NAME=compact_distilled TEACHER=outputs/minionerec-industrial/baselines/teacher bash scripts/train_compact.sh
# --overwrite and --help reach all three programs; trailing flags go to train.train_compact.
set -euo pipefail

PAPER=${PAPER:-minionerec}
DATASET=${DATASET:-industrial}
SIDS=${SIDS:-rqkmeans}
EXAMPLES=${EXAMPLES:-$SIDS}
RUN=${RUN:-$PAPER-$DATASET}
NAME=${NAME:-compact}               # compact | compact_distilled; another name: the recipe of compact
TEACHER=${TEACHER:-}                # directory of a saved item model; empty: the items that came alone
SPLITS=${SPLITS:-valid test}        # which rows are answered and measured
RECOMMEND_ARGS=${RECOMMEND_ARGS:-}  # flags of infer.recommend
EVALUATE_ARGS=${EVALUATE_ARGS:-}    # flags of infer.evaluate
source "$(dirname "$0")/env.sh"

share_flags "train.train_compact infer.recommend infer.evaluate" "$@"
recipe=compact
if has_recipe "$NAME"; then recipe=$NAME; fi
config_flags "$recipe"
model="$OUTPUT_ROOT/$RUN/baselines/$NAME"
sids="$DATA_ROOT/$DATASET/sids/$SIDS"
"$PYTHON" -m train.train_compact "${CONFIGS[@]}" --data "$DATA_ROOT/$DATASET" --sids "$sids" --output_dir "$model" \
    ${TEACHER:+--soft_targets.teacher "$TEACHER"} "$@"
for split in $SPLITS; do
    # shellcheck disable=SC2086
    "$PYTHON" -m infer.recommend --model "$model" --sids "$sids" --examples "$DATA_ROOT/$DATASET/examples/$EXAMPLES" \
        --split "$split" --output_dir "$OUTPUT_ROOT/$RUN/eval/$NAME.$split" --decode.score_space trie \
        ${SHARED[@]+"${SHARED[@]}"} $RECOMMEND_ARGS
    # shellcheck disable=SC2086
    "$PYTHON" -m infer.evaluate --predictions "$OUTPUT_ROOT/$RUN/eval/$NAME.$split" --data "$DATA_ROOT/$DATASET" \
        --sids "$sids" ${SHARED[@]+"${SHARED[@]}"} $EVALUATE_ARGS
done
