#!/usr/bin/env bash
# 03  Tags per item from category paths; missing ones completed if the config or a flag says how.
#   reads   $DATA_ROOT/$DATASET; its embeddings/$EMBEDDINGS where that variable is set
#   writes  $DATA_ROOT/$DATASET/tags/$TAGS
#   takes   seconds for thousands of items; with a chat model as long as its answers
# Edit the variables, or override:
#   DATASET=industrial bash scripts/03_complete_tags.sh
#   EMBEDDINGS=text_no_categories TAGS=graph bash scripts/03_complete_tags.sh --complete '[graph]'
#   PAPER=toy DATASET=toystore bash scripts/03_complete_tags.sh
set -euo pipefail

PAPER=${PAPER:-hidvae}
DATASET=${DATASET:-scientific}
TAGS=${TAGS:-categories}            # names the directory
EMBEDDINGS=${EMBEDDINGS:-}          # needed by `complete`: [graph], [llm], [cluster]
source "$(dirname "$0")/env.sh"

config_flags tags
"$PYTHON" -m preprocess.complete_tags "${CONFIGS[@]}" --data "$DATA_ROOT/$DATASET" \
    ${EMBEDDINGS:+--embeddings "$DATA_ROOT/$DATASET/embeddings/$EMBEDDINGS"} \
    --output_dir "$DATA_ROOT/$DATASET/tags/$TAGS" "$@"
