#!/usr/bin/env bash
# 07  Sequences + semantic IDs -> training and evaluation examples.
#   reads   $DATA_ROOT/$DATASET, its sids/$SIDS
#   writes  $DATA_ROOT/$DATASET/examples/$EXAMPLES/{train,valid,test}.parquet
#   takes   seconds per 100,000 rows
# Edit the variables, or override: DATASET=industrial bash scripts/07_build_examples.sh --wording sentence
set -euo pipefail

PAPER=${PAPER:-minionerec}
DATASET=${DATASET:-industrial}
SIDS=${SIDS:-rqkmeans}
EXAMPLES=${EXAMPLES:-$SIDS}         # names the directory
source "$(dirname "$0")/env.sh"

"$PYTHON" -m preprocess.build_examples --config "configs/$PAPER/$DATASET/examples.yaml" --data "$DATA_ROOT/$DATASET" \
    --sids "$DATA_ROOT/$DATASET/sids/$SIDS" --output_dir "$DATA_ROOT/$DATASET/examples/$EXAMPLES" "$@"
