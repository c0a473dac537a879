#!/usr/bin/env bash
# Quality of semantic IDs: one set, or all sets of a data set side by side.
#   reads   $DATA_ROOT/$DATASET, its sids/*, their embeddings where they still exist
#   writes  $OUTPUT_ROOT/quality/$DATASET: quality_report.json, quality.png, index.html; prints the table
#   takes   some seconds per set, and some for the embedding map (--map pca: at once)
# Edit the variables, or override: SIDS="rqkmeans minionerec" bash scripts/report_quality.sh --split test
set -euo pipefail

DATASET=${DATASET:-industrial}
SIDS=${SIDS:-}                      # names of sids directories; empty: every one that is finished
source "$(dirname "$0")/env.sh"

folders=()
if [ -n "$SIDS" ]; then
    for name in $SIDS; do folders+=("$DATA_ROOT/$DATASET/sids/$name"); done
else
    for manifest in "$DATA_ROOT/$DATASET"/sids/*/manifest.json; do
        if [ -e "$manifest" ]; then folders+=("$(dirname "$manifest")"); fi
    done
fi
"$PYTHON" -m rq.report_quality ${folders[@]+"${folders[@]}"} --data "$DATA_ROOT/$DATASET" \
    --output_dir "$OUTPUT_ROOT/quality/$DATASET" "$@"
