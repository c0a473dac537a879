#!/usr/bin/env bash
# 05  A textual identifier (TID) per item: up to 10 ordered English terms, by a chat model.
#   reads   $DATA_ROOT/$DATASET; a file of captions where $CAPTIONS names one
#   writes  $DATA_ROOT/$DATASET/tids/$TIDS
#   takes   one call per item: as long as the chat model's answers; seconds without one (backend heuristic)
# Edit the variables, or override:
#   DATASET=industrial bash scripts/05_generate_tids.sh --dry_run true            # what it would cost
#   DATASET=industrial bash scripts/05_generate_tids.sh --ask.client.base_url http://localhost:8000/v1 --ask.client.model teacher
#   DATASET=industrial CAPTIONS=/path/to/captions.json TIDS=captions bash scripts/05_generate_tids.sh
#   DATASET=navi TIDS=given GIVEN=/path/to/pid2cid2tid.parquet bash scripts/05_generate_tids.sh    # (or --given): nobody is asked
#   PAPER=toy DATASET=toystore TIDS=keywords bash scripts/05_generate_tids.sh     # no model: keywords
set -euo pipefail

PAPER=${PAPER:-navigen}
DATASET=${DATASET:-industrial}
TIDS=${TIDS:-terms}                 # names the directory
CAPTIONS=${CAPTIONS:-}              # JSON by raw item id; without it the items' own text
GIVEN=${GIVEN:-}                    # terms that are written already; the recipe, which says who is asked and how, is not read then
source "$(dirname "$0")/env.sh"

config_flags tids
if [[ -n $GIVEN || " $* " == *" --given"[\ =]* ]]; then CONFIGS=(); fi
single preprocess.generate_tids ${CONFIGS[@]+"${CONFIGS[@]}"} --data "$DATA_ROOT/$DATASET" ${GIVEN:+--given "$GIVEN"} \
    ${CAPTIONS:+--captions "$CAPTIONS"} --output_dir "$DATA_ROOT/$DATASET/tids/$TIDS" "$@"
