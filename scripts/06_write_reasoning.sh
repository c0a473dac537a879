#!/usr/bin/env bash
# 06  What a teacher writes about train rows: a thought that ends in the next item's terms, a prompt found by an evolutionary
#     search, a thought that leads to that prompt.
#   reads   $DATA_ROOT/$DATASET, its tids/$TIDS
#   writes  $DATA_ROOT/$DATASET/reasoning/${REASONING}_identifiers, _instructions, _thoughts
#   takes   1 + 4 + 1 calls per row (2 + 2 x rounds for the search): as long as the chat model's answers; seconds without one
# Edit the variables, or override:
#   DATASET=industrial bash scripts/06_write_reasoning.sh --max_samples 5000
#   ASK_ARGS="--ask.client.base_url http://localhost:8000/v1 --ask.client.model teacher" bash scripts/06_write_reasoning.sh
#   SEARCH_ARGS="--rounds 3" bash scripts/06_write_reasoning.sh
#   PAPER=toy DATASET=toystore TIDS=keywords bash scripts/06_write_reasoning.sh     # no model: rules, marked as such
#   DISTILL_ARGS="--ask.form clue" bash scripts/06_write_reasoning.sh --ask.form clue       # thoughts of one sentence, for small models
# --overwrite and --help reach all programs. One part alone: python -m preprocess.search_prompts --help
set -euo pipefail

PAPER=${PAPER:-navigen}
DATASET=${DATASET:-industrial}
TIDS=${TIDS:-terms}                 # of stage 05
REASONING=${REASONING:-$TIDS}       # names the directories
ASK_ARGS=${ASK_ARGS:-}              # flags of all three programs
SEARCH_ARGS=${SEARCH_ARGS:-}        # flags of preprocess.search_prompts; trailing flags go to preprocess.reason_identifiers
DISTILL_ARGS=${DISTILL_ARGS:-}      # flags of preprocess.distill_reasoning
source "$(dirname "$0")/env.sh"

share_flags "preprocess.reason_identifiers preprocess.search_prompts preprocess.distill_reasoning" "$@"
WRITTEN=$DATA_ROOT/$DATASET/reasoning/$REASONING
config_flags reason
# shellcheck disable=SC2086
single preprocess.reason_identifiers "${CONFIGS[@]}" --data "$DATA_ROOT/$DATASET" \
    --tids "$DATA_ROOT/$DATASET/tids/$TIDS" --output_dir "${WRITTEN}_identifiers" $ASK_ARGS "$@"
# shellcheck disable=SC2086
if is_dry_run $ASK_ARGS "$@"; then exit; fi      # the others ask about what this one has not written
config_flags search
# shellcheck disable=SC2086
single preprocess.search_prompts "${CONFIGS[@]}" --reasoning "${WRITTEN}_identifiers" \
    --output_dir "${WRITTEN}_instructions" $ASK_ARGS ${SHARED[@]+"${SHARED[@]}"} $SEARCH_ARGS
config_flags distill
# shellcheck disable=SC2086
single preprocess.distill_reasoning "${CONFIGS[@]}" --search "${WRITTEN}_instructions" \
    --output_dir "${WRITTEN}_thoughts" $ASK_ARGS ${SHARED[@]+"${SHARED[@]}"} $DISTILL_ARGS
