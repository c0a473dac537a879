#!/usr/bin/env bash
# 02  Item embeddings: text (TF-IDF + SVD, or any encoder), co-occurrence of train sequences, images, other programs' vectors.
#   reads   $DATA_ROOT/$DATASET, and what the config names
#   writes  $DATA_ROOT/$DATASET/embeddings/$EMBEDDINGS/embeddings.npy
#   takes   seconds for thousands of items; an encoder of 4B parameters needs a GPU
# Edit the variables, or override:
#   DATASET=office bash scripts/02_embed_items.sh
#   EMBED=qwen3 NUM_GPUS=8 bash scripts/02_embed_items.sh                         # embed_qwen3.yaml -> embeddings/qwen3
#   EMBED=published EMBEDDINGS=qwen3_mean NUM_GPUS=8 bash scripts/02_embed_items.sh
#   PAPER=toy DATASET=toystore EMBED=no_categories EMBEDDINGS=text_no_categories bash scripts/02_embed_items.sh
set -euo pipefail

PAPER=${PAPER:-minionerec}
DATASET=${DATASET:-industrial}
EMBED=${EMBED:-}                    # qwen3 | published | ...: the config embed_$EMBED.yaml; empty: embed.yaml
EMBEDDINGS=${EMBEDDINGS:-${EMBED:-text_cooc}}   # names the directory
NUM_GPUS=${NUM_GPUS:-1}             # processes that share an encoder's work
source "$(dirname "$0")/env.sh"

config_flags "embed${EMBED:+_$EMBED}"
launch rq.embed_items "${CONFIGS[@]}" --data "$DATA_ROOT/$DATASET" \
    --output_dir "$DATA_ROOT/$DATASET/embeddings/$EMBEDDINGS" "$@"
