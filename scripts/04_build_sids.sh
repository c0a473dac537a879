#!/usr/bin/env bash
# 04  Train the quantizer and assign a semantic ID to every item.
#   reads   $DATA_ROOT/$DATASET, its embeddings/$EMBEDDINGS
#   writes  $DATA_ROOT/$DATASET/quantizers/$SIDS, $DATA_ROOT/$DATASET/sids/$SIDS
#   takes   seconds for thousands of items by k-means, minutes by gradients
# Edit the variables, or override: ASSIGN_ARGS="--repair none" bash scripts/04_build_sids.sh --seed 1
#   CONFIG=quantizer_balanced.yaml SIDS=balanced bash scripts/04_build_sids.sh
#   CONFIG=quantizer_plum.yaml SIDS=plum bash scripts/04_build_sids.sh --data data/industrial
set -euo pipefail

PAPER=${PAPER:-minionerec}
DATASET=${DATASET:-industrial}
EMBEDDINGS=${EMBEDDINGS:-text_cooc}
CONFIG=${CONFIG:-quantizer.yaml}    # quantizer.yaml | quantizer_{balanced,opq,rvq,rqvae,rqkmeans_plus,plum}.yaml | ..._published.yaml
SIDS=${SIDS:-rqkmeans}              # names the directory
ASSIGN_ARGS=${ASSIGN_ARGS:-}        # flags of rq.assign_sids; trailing flags go to rq.train_quantizer
source "$(dirname "$0")/env.sh"

"$PYTHON" -m rq.train_quantizer --config "configs/$PAPER/$DATASET/$CONFIG" \
    --embeddings "$DATA_ROOT/$DATASET/embeddings/$EMBEDDINGS" --output_dir "$DATA_ROOT/$DATASET/quantizers/$SIDS" "$@"
# shellcheck disable=SC2086
"$PYTHON" -m rq.assign_sids --config "configs/$PAPER/$DATASET/assign.yaml" --data "$DATA_ROOT/$DATASET" \
    --embeddings "$DATA_ROOT/$DATASET/embeddings/$EMBEDDINGS" --quantizer "$DATA_ROOT/$DATASET/quantizers/$SIDS" \
    --output_dir "$DATA_ROOT/$DATASET/sids/$SIDS" $ASSIGN_ARGS
