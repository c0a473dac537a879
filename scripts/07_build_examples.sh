#!/usr/bin/env bash
# 07  Sequences + semantic IDs -> training and evaluation examples.
#   reads   $DATA_ROOT/$DATASET, its sids/$SIDS
#   writes  $DATA_ROOT/$DATASET/examples/$EXAMPLES/{train,valid,test}.parquet
#   takes   seconds per 100,000 rows
# Edit the variables, or override:
#   DATASET=office SIDS=balanced bash scripts/07_build_examples.sh
#   EXAMPLES=sentence bash scripts/07_build_examples.sh --wording sentence        # for a pretrained base model
#   EXAMPLES=mixed bash scripts/07_build_examples.sh --tasks '{history_to_sid: 1, title_to_sid: 1, titles_to_sid: 0.25}'   # train/README.md
#   PAPER=toy DATASET=toystore bash scripts/07_build_examples.sh
set -euo pipefail

PAPER=${PAPER:-minionerec}
DATASET=${DATASET:-industrial}
SIDS=${SIDS:-rqkmeans}
EXAMPLES=${EXAMPLES:-$SIDS}         # names the directory
source "$(dirname "$0")/env.sh"

config_flags examples
"$PYTHON" -m preprocess.build_examples "${CONFIGS[@]}" --data "$DATA_ROOT/$DATASET" \
    --sids "$DATA_ROOT/$DATASET/sids/$SIDS" --output_dir "$DATA_ROOT/$DATASET/examples/$EXAMPLES" "$@"
