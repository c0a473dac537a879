#!/usr/bin/env bash
# Sequential models without semantic IDs (SASRec, GRU4Rec, Caser, HSTU, SASRec with item texts), their predictions and metrics.
#   reads   $DATA_ROOT/$DATASET (01), configs/$PAPER/sequential_$NAME.yaml, its sids/$SIDS (for SID-level metrics)
#   writes  $OUTPUT_ROOT/$RUN/baselines/$NAME and eval/$NAME.{$SPLITS}, each with metrics/
#   takes   minutes on one CPU thread for thousands of items and users
# Edit the variables, or override:
#   NAME=text RUN=seed1 bash scripts/train_sequential.sh --seed 1
#   NAME=sasrec bash scripts/train_sequential.sh --item_vectors data/industrial/embeddings/sasrec
# --overwrite and --help reach all three programs; trailing flags go to train.train_sequential.
set -euo pipefail

PAPER=${PAPER:-minionerec}
DATASET=${DATASET:-industrial}
SIDS=${SIDS:-rqkmeans}
RUN=${RUN:-$PAPER-$DATASET}
NAME=${NAME:-sasrec}                # sasrec | text | companions | hstu | sasrec_published | gru4rec_published | caser_published
SPLITS=${SPLITS:-valid test}        # which rows are answered and measured
EVALUATE_ARGS=${EVALUATE_ARGS:-}    # flags of infer.evaluate
source "$(dirname "$0")/env.sh"

share_flags "train.train_sequential infer.run_baselines infer.evaluate" "$@"
need_sids
config_flags "sequential_$NAME"
model="$OUTPUT_ROOT/$RUN/baselines/$NAME"
"$PYTHON" -m train.train_sequential "${CONFIGS[@]}" --data "$DATA_ROOT/$DATASET" --output_dir "$model" "$@"
"$PYTHON" -m infer.run_baselines --models "$(list_of "$model")" --data "$DATA_ROOT/$DATASET" --output_root "$OUTPUT_ROOT/$RUN/eval" \
    --splits "[${SPLITS// /,}]" ${SHARED[@]+"${SHARED[@]}"}
for split in $SPLITS; do
    # shellcheck disable=SC2086
    "$PYTHON" -m infer.evaluate --predictions "$OUTPUT_ROOT/$RUN/eval/$NAME.$split" --data "$DATA_ROOT/$DATASET" \
        --sids "$DATA_ROOT/$DATASET/sids/$SIDS" ${SHARED[@]+"${SHARED[@]}"} $EVALUATE_ARGS
done
