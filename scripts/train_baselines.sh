#!/usr/bin/env bash
# Baselines: popularity, transitions, item-kNN plain and tuned on valid.
#   reads   $DATA_ROOT/$DATASET (train rows), its sids/$SIDS (for their SID-level metrics)
#   writes  $OUTPUT_ROOT/$RUN/{baselines,eval/*.$SPLIT} of pop, last, recent, itemknn, itemknn_tuned, each with metrics/
#   takes   seconds for thousands of items and users
# Edit the variables, or override: DATASET=industrial bash scripts/train_baselines.sh
set -euo pipefail

PAPER=${PAPER:-minionerec}
DATASET=${DATASET:-industrial}
SIDS=${SIDS:-rqkmeans}
RUN=${RUN:-$PAPER-$DATASET}
SPLIT=${SPLIT:-test}                # test | valid
EVALUATE_ARGS=${EVALUATE_ARGS:-}    # flags of infer.evaluate; trailing flags go to infer.run_baselines
source "$(dirname "$0")/env.sh"

"$PYTHON" -m infer.run_baselines --data "$DATA_ROOT/$DATASET" --output_root "$OUTPUT_ROOT/$RUN/eval" --splits "[$SPLIT]" "$@"
for name in pop last recent itemknn itemknn_tuned; do
    # shellcheck disable=SC2086
    "$PYTHON" -m infer.evaluate --predictions "$OUTPUT_ROOT/$RUN/eval/$name.$SPLIT" --data "$DATA_ROOT/$DATASET" \
        --sids "$DATA_ROOT/$DATASET/sids/$SIDS" $EVALUATE_ARGS
done
