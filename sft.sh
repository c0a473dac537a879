#!/usr/bin/env bash
# 09  Supervised fine-tuning.
#   reads   $MODEL (stage 08, or the final/ of an earlier SFT stage), $DATA_ROOT/$DATASET/{examples/$EXAMPLES,sids/$SIDS}
#   writes  $OUTPUT_ROOT/$RUN/sft_$STAGE/{config.yaml,manifest.json,metrics.jsonl,checkpoint-*,final/}
#   takes   minutes on a laptop for the toy and Industrial configs (README); resumes from the newest complete checkpoint
# Edit the variables, or override: DATASET=industrial bash sft.sh --trainer.learning_rate 1e-3
set -euo pipefail

PAPER=${PAPER:-minionerec}
DATASET=${DATASET:-industrial}
SIDS=${SIDS:-rqkmeans}
EXAMPLES=${EXAMPLES:-$SIDS}
RUN=${RUN:-$PAPER-$DATASET}
STAGE=${STAGE:-recommend}           # names the config sft_$STAGE.yaml and the output
NUM_GPUS=${NUM_GPUS:-1}
source "$(dirname "$0")/scripts/env.sh"
MODEL=${MODEL:-$OUTPUT_ROOT/$RUN/vocab}

launch train.sft --config "configs/$PAPER/$DATASET/sft_$STAGE.yaml" --model "$MODEL" \
    --examples "$DATA_ROOT/$DATASET/examples/$EXAMPLES" --sids "$DATA_ROOT/$DATASET/sids/$SIDS" \
    --output_dir "$OUTPUT_ROOT/$RUN/sft_$STAGE" "$@"
