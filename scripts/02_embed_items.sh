#!/usr/bin/env bash
# 02  Item embeddings: text (TF-IDF + SVD, or any encoder), co-occurrence of train sequences, images, other programs' vectors.
#   reads   $DATA_ROOT/$DATASET, and what the config names
#   writes  $DATA_ROOT/$DATASET/embeddings/$EMBEDDINGS/embeddings.npy
#   takes   seconds for thousands of items; an encoder of 4B parameters needs a GPU
# Edit the variables, or override: DATASET=industrial bash scripts/02_embed_items.sh
#   CONFIG=embed_qwen3.yaml EMBEDDINGS=qwen3 NUM_GPUS=8 bash scripts/02_embed_items.sh
set -euo pipefail

PAPER=${PAPER:-minionerec}
DATASET=${DATASET:-industrial}
EMBEDDINGS=${EMBEDDINGS:-text_cooc} # names the directory
CONFIG=${CONFIG:-embed.yaml}        # embed.yaml | embed_qwen3.yaml | embed_published.yaml
NUM_GPUS=${NUM_GPUS:-1}             # processes that share an encoder's work
source "$(dirname "$0")/env.sh"

launch rq.embed_items --config "configs/$PAPER/$DATASET/$CONFIG" --data "$DATA_ROOT/$DATASET" \
    --output_dir "$DATA_ROOT/$DATASET/embeddings/$EMBEDDINGS" "$@"
