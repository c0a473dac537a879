#!/usr/bin/env bash
# 02  Item embeddings: text (TF-IDF + SVD), co-occurrence of train sequences, or both.
#   reads   $DATA_ROOT/$DATASET
#   writes  $DATA_ROOT/$DATASET/embeddings/$EMBEDDINGS/embeddings.npy
#   takes   seconds for thousands of items
# Edit the variables, or override: DATASET=industrial bash scripts/02_embed_items.sh
set -euo pipefail

PAPER=${PAPER:-minionerec}
DATASET=${DATASET:-industrial}
EMBEDDINGS=${EMBEDDINGS:-text_cooc} # names the directory
source "$(dirname "$0")/env.sh"

"$PYTHON" -m rq.embed_items --config "configs/$PAPER/$DATASET/embed.yaml" --data "$DATA_ROOT/$DATASET" \
    --output_dir "$DATA_ROOT/$DATASET/embeddings/$EMBEDDINGS" "$@"
