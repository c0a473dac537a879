#!/usr/bin/env bash
# 01  Raw dump or tables -> items, interactions, sequences.
#   reads   $RAW (the folder; file names are in configs/$PAPER/$DATASET/prepare.yaml)
#   writes  $DATA_ROOT/$DATASET/{items,interactions,sequences,users}.parquet
#   takes   seconds; memory is bounded by the coded columns, not by the text
# Edit the variables, or override: DATASET=industrial RAW=/path/to/raw bash scripts/01_prepare_data.sh --max_history 20
set -euo pipefail

PAPER=${PAPER:-minionerec}          # folder of configs/
DATASET=${DATASET:-industrial}      # industrial | industrial_raw | magazine | music14 | toystore (PAPER=toy)
source "$(dirname "$0")/env.sh"
RAW=${RAW:-$DATA_ROOT/$DATASET/raw}

"$PYTHON" -m data.prepare --config "configs/$PAPER/$DATASET/prepare.yaml" --raw "$RAW" \
    --output_dir "$DATA_ROOT/$DATASET" "$@"
