#!/usr/bin/env bash
# 06  SIDReasoner's teacher: a narrative of every item, where each history leads, and both as one story of a train row.
#   reads   $DATA_ROOT/$DATASET, its sids/$SIDS (remembered only: texts name items by placeholders)
#   writes  $DATA_ROOT/$DATASET/reasoning/${REASONING}_items, _histories, _narratives
#   takes   2 calls an item and 2 a row: as long as the chat model's answers; seconds without one
# Edit the variables, or override:
#   ASK_ARGS="--ask.client.base_url http://localhost:8000/v1 --ask.client.model teacher" bash scripts/06_enrich_texts.sh
#   HISTORY_ARGS="--max_samples 5000" bash scripts/06_enrich_texts.sh             # stories are told of the rows that have a reasoning
#   ASK_ARGS="--ask.client.backend heuristic --ask.client.model= --ask.client.base_url=" bash scripts/06_enrich_texts.sh   # rules, marked as such
#   python -m preprocess.enrich_histories --write taste ...                      # MiniOneRec's pseudo-labels: intention, taste, interest
# Trailing flags go to preprocess.enrich_items; --overwrite and --help reach all programs.
set -euo pipefail

PAPER=${PAPER:-sidreasoner}
DATASET=${DATASET:-office_sidreasoner}
SIDS=${SIDS:-published}
REASONING=${REASONING:-teacher}     # names the directories
ASK_ARGS=${ASK_ARGS:-}              # flags of all three
HISTORY_ARGS=${HISTORY_ARGS:-}      # flags of preprocess.enrich_histories --write history
NARRATIVE_ARGS=${NARRATIVE_ARGS:-}  # flags of preprocess.enrich_histories --write narrative
source "$(dirname "$0")/env.sh"

share_flags "preprocess.enrich_items preprocess.enrich_histories" "$@"
WRITTEN=$DATA_ROOT/$DATASET/reasoning/$REASONING
config_flags enrich_items
# shellcheck disable=SC2086
single preprocess.enrich_items "${CONFIGS[@]}" --data "$DATA_ROOT/$DATASET" --sids "$DATA_ROOT/$DATASET/sids/$SIDS" \
    --output_dir "${WRITTEN}_items" $ASK_ARGS "$@"
dry=()
# shellcheck disable=SC2086
if is_dry_run $ASK_ARGS "$@"; then dry=(--dry_run true); fi
config_flags enrich_histories
# shellcheck disable=SC2086
single preprocess.enrich_histories "${CONFIGS[@]}" --data "$DATA_ROOT/$DATASET" --sids "$DATA_ROOT/$DATASET/sids/$SIDS" \
    --output_dir "${WRITTEN}_histories" $ASK_ARGS ${SHARED[@]+"${SHARED[@]}"} ${dry[@]+"${dry[@]}"} $HISTORY_ARGS
if [ "${#dry[@]}" -gt 0 ]; then exit; fi         # stories are told of histories that were not written
# shellcheck disable=SC2086
single preprocess.enrich_histories "${CONFIGS[@]}" --write narrative --data "$DATA_ROOT/$DATASET" \
    --sids "$DATA_ROOT/$DATASET/sids/$SIDS" --reasoning "${WRITTEN}_histories" \
    --output_dir "${WRITTEN}_narratives" $ASK_ARGS ${SHARED[@]+"${SHARED[@]}"} $NARRATIVE_ARGS
