#!/usr/bin/env bash
# 04  Train the quantizer and assign a semantic ID to every item.
#   reads   $DATA_ROOT/$DATASET, its embeddings/$EMBEDDINGS
#   writes  $DATA_ROOT/$DATASET/quantizers/$SIDS, $DATA_ROOT/$DATASET/sids/$SIDS
#   takes   seconds for thousands of items by k-means, minutes by gradients
# Edit the variables, or override:
#   QUANTIZER=balanced bash scripts/04_build_sids.sh                              # quantizer_balanced.yaml -> sids/balanced
#   QUANTIZER=plum bash scripts/04_build_sids.sh --data data/industrial           # it learns from the train sequences too
#   EMBEDDINGS=qwen3_mean QUANTIZER=rqvae_published bash scripts/04_build_sids.sh
#   SIDS=seed1 ASSIGN_ARGS="--repair none" bash scripts/04_build_sids.sh --seed 1
#   PAPER=hidvae DATASET=scientific EMBEDDINGS=text_no_categories SIDS=hidvae bash scripts/04_build_sids.sh \
#       --tags data/scientific/tags/categories
# --overwrite and --help reach both programs.
set -euo pipefail

PAPER=${PAPER:-minionerec}
DATASET=${DATASET:-industrial}
EMBEDDINGS=${EMBEDDINGS:-text_cooc}
QUANTIZER=${QUANTIZER:-}            # balanced | opq | rvq | rqvae | rqkmeans_plus | plum | ...: quantizer_$QUANTIZER.yaml; empty: quantizer.yaml
SIDS=${SIDS:-${QUANTIZER:-rqkmeans}}            # names the directory
ASSIGN_ARGS=${ASSIGN_ARGS:-}        # flags of rq.assign_sids; trailing flags go to rq.train_quantizer
source "$(dirname "$0")/env.sh"

share_flags "rq.train_quantizer rq.assign_sids" "$@"
config_flags "quantizer${QUANTIZER:+_$QUANTIZER}"
"$PYTHON" -m rq.train_quantizer "${CONFIGS[@]}" \
    --embeddings "$DATA_ROOT/$DATASET/embeddings/$EMBEDDINGS" --output_dir "$DATA_ROOT/$DATASET/quantizers/$SIDS" "$@"
config_flags assign
# shellcheck disable=SC2086
"$PYTHON" -m rq.assign_sids "${CONFIGS[@]}" --data "$DATA_ROOT/$DATASET" \
    --embeddings "$DATA_ROOT/$DATASET/embeddings/$EMBEDDINGS" --quantizer "$DATA_ROOT/$DATASET/quantizers/$SIDS" \
    --output_dir "$DATA_ROOT/$DATASET/sids/$SIDS" ${SHARED[@]+"${SHARED[@]}"} $ASSIGN_ARGS
