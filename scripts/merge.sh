#!/usr/bin/env bash
# A checkpoint of a training -> one complete Hugging Face model directory.
#   reads   $CHECKPOINT (an adapter: checkpoint-* or adapter/ of a run with train_what lora or new_rows)
#   writes  $OUTPUT_ROOT/$RUN/$NAME
#   takes   as long as loading and saving the model
# Edit the variables, or override:
#   RUN=qwen3 CHECKPOINT=outputs/qwen3/sft_lora/checkpoint-40 bash scripts/merge.sh
#   CHECKPOINT=/path/to/adapter bash scripts/merge.sh --base /path/to/Qwen3-1.7B --dtype bfloat16    # its base has moved
set -euo pipefail

RUN=${RUN:-merged}
NAME=${NAME:-model}                 # names the output
CHECKPOINT=${CHECKPOINT:-}          # the directory to merge
source "$(dirname "$0")/env.sh"
share_flags train.merge "$@"
if [ -z "$CHECKPOINT" ]; then
    echo "ERROR 2: CHECKPOINT is empty -> CHECKPOINT=outputs/<run>/sft_lora/checkpoint-40 bash scripts/merge.sh" >&2
    exit 2
fi

"$PYTHON" -m train.merge --checkpoint "$CHECKPOINT" --output_dir "$OUTPUT_ROOT/$RUN/$NAME" "$@"
