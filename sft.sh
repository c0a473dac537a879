#!/usr/bin/env bash
# 09  Supervised fine-tuning.
#   reads   $MODEL (stage 08, or the final/ of an earlier SFT stage), $DATA_ROOT/$DATASET/{examples/$EXAMPLES,sids/$SIDS}
#   writes  $OUTPUT_ROOT/$RUN/$NAME/{config.yaml,manifest.json,metrics.jsonl,checkpoint-*,final/}
#   takes   minutes on a laptop for the toy and Industrial configs (README); resumes from the newest complete checkpoint
# Edit the variables, or override:
#   DATASET=office bash sft.sh --trainer.learning_rate 1e-3
#   NAME=sft_wide MODEL=outputs/wide/vocab bash sft.sh                            # another model, another output
#   RUN=qwen3 STAGE=pretrained EXAMPLES=sentence NUM_GPUS=8 bash sft.sh           # sft_pretrained.yaml
#   RUN=qwen3 STAGE=pretrained EXAMPLES=sentence SIZE=1.7B CARD=24 bash sft.sh    # batch, mode and sharding for the card, by estimate
#   STAGE=distilled TEACHER=outputs/minionerec-industrial/baselines/teacher bash sft.sh
#   PAPER=navigen STAGE=identifiers EXAMPLES=identifiers bash sft.sh              # two stages: the new tokens first,
#   PAPER=navigen STAGE=dual EXAMPLES=dual bash sft.sh                            # then all of the model, from there
#   PAPER=sidreasoner STAGE=align EXAMPLES=align bash sft.sh                      # two stages: language and semantic IDs,
#   PAPER=sidreasoner STAGE=think EXAMPLES=think bash sft.sh                      # then thoughts before answers, from there
#   PAPER=toy DATASET=toystore RUN=quickstart bash sft.sh
set -euo pipefail

PAPER=${PAPER:-minionerec}
DATASET=${DATASET:-industrial}
SIDS=${SIDS:-rqkmeans}
EXAMPLES=${EXAMPLES:-$SIDS}
RUN=${RUN:-$PAPER-$DATASET}
STAGE=${STAGE:-recommend}           # names the config sft_$STAGE.yaml
NAME=${NAME:-sft_$STAGE}            # names the output
NUM_GPUS=${NUM_GPUS:-1}
TRACKER=${TRACKER:-none}            # none | tensorboard | wandb | swanlab: curves besides metrics.jsonl
TEACHER=${TEACHER:-}                # item model whose probabilities are answers too (STAGE=distilled): outputs/<run>/baselines/teacher
SIZE=${SIZE:-}                      # 0.5B | 0.6B | 1.5B | 1.7B | 3B | 4B with CARD=GB of a GPU: see python -m configs.sizes
CARD=${CARD:-}
source "$(dirname "$0")/scripts/env.sh"
case $STAGE in
    think*) MODEL=${MODEL:-$OUTPUT_ROOT/$RUN/sft_align/final} ;;
    dual*) MODEL=${MODEL:-$OUTPUT_ROOT/$RUN/sft_identifiers/final} ;;   # a first stage is not skipped by accident
    *) MODEL=${MODEL:-$OUTPUT_ROOT/$RUN/vocab} ;;
esac

config_flags "sft_$STAGE"
recipe_flags
soft=()
if [ -n "$TEACHER" ]; then soft=(--soft_targets.teacher "$TEACHER" --data "$DATA_ROOT/$DATASET"); fi
launch train.sft "${CONFIGS[@]}" ${RECIPE[@]+"${RECIPE[@]}"} ${soft[@]+"${soft[@]}"} --model "$MODEL" \
    --examples "$DATA_ROOT/$DATASET/examples/$EXAMPLES" --sids "$DATA_ROOT/$DATASET/sids/$SIDS" \
    --output_dir "$OUTPUT_ROOT/$RUN/$NAME" --tracker "$TRACKER" "$@"
