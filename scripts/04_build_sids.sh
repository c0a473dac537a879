#!/usr/bin/env bash
# 04  Train the quantizer and assign a semantic ID to every item.
#   reads   $DATA_ROOT/$DATASET, its embeddings/$EMBEDDINGS
#   writes  $DATA_ROOT/$DATASET/quantizers/$SIDS, $DATA_ROOT/$DATASET/sids/$SIDS
#   takes   seconds for thousands of items
# Edit the variables, or override: ASSIGN_ARGS="--repair none" bash scripts/04_build_sids.sh --seed 1
set -euo pipefail

PAPER=${PAPER:-minionerec}
DATASET=${DATASET:-industrial}
EMBEDDINGS=${EMBEDDINGS:-text_cooc}
SIDS=${SIDS:-rqkmeans}              # names the directory
ASSIGN_ARGS=${ASSIGN_ARGS:-}        # flags of rq.assign_sids; trailing flags go to rq.train_quantizer
source "$(dirname "$0")/env.sh"

"$PYTHON" -m rq.train_quantizer --config "configs/$PAPER/$DATASET/quantizer.yaml" \
    --embeddings "$DATA_ROOT/$DATASET/embeddings/$EMBEDDINGS" --output_dir "$DATA_ROOT/$DATASET/quantizers/$SIDS" "$@"
# shellcheck disable=SC2086
"$PYTHON" -m rq.assign_sids --config "configs/$PAPER/$DATASET/assign.yaml" --data "$DATA_ROOT/$DATASET" \
    --embeddings "$DATA_ROOT/$DATASET/embeddings/$EMBEDDINGS" --quantizer "$DATA_ROOT/$DATASET/quantizers/$SIDS" \
    --output_dir "$DATA_ROOT/$DATASET/sids/$SIDS" $ASSIGN_ARGS
