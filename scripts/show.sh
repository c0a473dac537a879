#!/usr/bin/env bash
# Predictions with titles: what users chose before, what came next (*), what was recommended.
#   reads   $OUTPUT_ROOT/$RUN/eval/$NAME.$SPLIT, $DATA_ROOT/$DATASET, its sids/$SIDS
#   writes  nothing
#   takes   seconds
# Edit the variables, or override: DATASET=toystore RUN=quickstart NAME=itemknn_tuned bash scripts/show.sh --users 3 --top 5
set -euo pipefail

PAPER=${PAPER:-minionerec}
DATASET=${DATASET:-industrial}
SIDS=${SIDS:-rqkmeans}
RUN=${RUN:-$PAPER-$DATASET}
NAME=${NAME:-grpo}                  # grpo | sft_recommend | itemknn_tuned | ...
SPLIT=${SPLIT:-test}                # test | valid
source "$(dirname "$0")/env.sh"

"$PYTHON" -m infer.show --predictions "$OUTPUT_ROOT/$RUN/eval/$NAME.$SPLIT" --data "$DATA_ROOT/$DATASET" \
    --sids "$DATA_ROOT/$DATASET/sids/$SIDS" "$@"
