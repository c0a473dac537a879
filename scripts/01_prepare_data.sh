#!/usr/bin/env bash
# 01  Raw dump or tables -> items, interactions, sequences.
#   reads   $RAW (the folder; which files and how is in configs/$PAPER/$CONFIG/prepare.yaml)
#   writes  $DATA_ROOT/$DATASET/{items,interactions,sequences,users}.parquet
#   takes   seconds; memory is bounded by the coded columns, not by the text
# Edit the variables, or override:
#   DATASET=office RAW=/path/to/raw bash scripts/01_prepare_data.sh --split.max_history 20
#   DATASET=magazine RAW=/path/to/raw bash scripts/01_prepare_data.sh       # a raw dump: industrial_raw, magazine, music14
#   PAPER=toy DATASET=toystore bash scripts/01_prepare_data.sh              # after python -m data.toy --output_dir data/toystore/raw
#   DATASET=magazine10 CONFIG=magazine RAW=... bash scripts/01_prepare_data.sh --filters.user_k 10    # another folder, that recipe
set -euo pipefail

PAPER=${PAPER:-minionerec}          # folder of configs/
DATASET=${DATASET:-industrial}      # folder of $DATA_ROOT
ENGINE=${ENGINE:-}                  # spark: the k-core of tables too large for one machine (requirements-cluster.txt)
source "$(dirname "$0")/env.sh"
RAW=${RAW:-$DATA_ROOT/$DATASET/raw}

case $ENGINE in "" | spark) ;; *) refuse_engine data.prepare ;; esac
config_flags prepare
"$PYTHON" -m data.prepare "${CONFIGS[@]}" --raw "$RAW" ${ENGINE:+--engine "$ENGINE"} \
    --output_dir "$DATA_ROOT/$DATASET" "$@"
