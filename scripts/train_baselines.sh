#!/usr/bin/env bash
# Baselines: popularity, transitions, item-kNN plain and tuned on valid; any other that needs no training.
#   reads   $DATA_ROOT/$DATASET (train rows), its sids/$SIDS (for their SID-level metrics)
#   writes  $OUTPUT_ROOT/$RUN/{baselines,eval/*.$SPLIT} of $MODELS, each with metrics/
#   takes   seconds for thousands of items and users
# Edit the variables, or override:
#   DATASET=office SPLIT=valid bash scripts/train_baselines.sh --depth 100
#   MODELS="mixture trend" bash scripts/train_baselines.sh
#   PAPER=toy DATASET=toystore RUN=quickstart bash scripts/train_baselines.sh
# --overwrite and --help reach both programs.
set -euo pipefail

PAPER=${PAPER:-minionerec}
DATASET=${DATASET:-industrial}
SIDS=${SIDS:-rqkmeans}
RUN=${RUN:-$PAPER-$DATASET}
MODELS=${MODELS:-pop last recent itemknn itemknn_tuned}  # and itemknn_text, mixture, trend, repeat
SPLIT=${SPLIT:-test}                # test | valid
EVALUATE_ARGS=${EVALUATE_ARGS:-}    # flags of infer.evaluate; trailing flags go to infer.run_baselines
source "$(dirname "$0")/env.sh"

share_flags "infer.run_baselines infer.evaluate" "$@"
need_sids
"$PYTHON" -m infer.run_baselines --models "[${MODELS// /,}]" --data "$DATA_ROOT/$DATASET" --output_root "$OUTPUT_ROOT/$RUN/eval" --splits "[$SPLIT]" "$@"
for name in $MODELS; do
    # shellcheck disable=SC2086
    "$PYTHON" -m infer.evaluate --predictions "$OUTPUT_ROOT/$RUN/eval/$name.$SPLIT" --data "$DATA_ROOT/$DATASET" \
        --sids "$DATA_ROOT/$DATASET/sids/$SIDS" ${SHARED[@]+"${SHARED[@]}"} $EVALUATE_ARGS
done
