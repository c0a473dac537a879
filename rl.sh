#!/usr/bin/env bash
# 10  GRPO with trie-constrained beam rollouts.
#   reads   $MODEL (the final/ of an SFT stage), $DATA_ROOT/$DATASET/{examples/$EXAMPLES,sids/$SIDS}; with instructions tids/$TIDS
#   writes  $OUTPUT_ROOT/$RUN/$NAME/{config.yaml,manifest.json,metrics.jsonl,checkpoint-*,final/}
#   takes   minutes on a laptop for the toy and Industrial configs (README); resumes from the newest complete checkpoint
# Edit the variables, or override:
#   DATASET=office bash rl.sh --rollout.num_generations 8
#   NAME=grpo_free bash rl.sh --rollout.beta 0                                    # another output beside grpo, same config
#   NAME=grpo_teacher TEACHER=outputs/minionerec-industrial/baselines/text bash rl.sh      # another config: grpo_teacher.yaml
#   NAME=grpo_mine bash rl.sh --rewards '[exact_match, {name: my.py:fn, weight: 0.5}]'   # train/README.md
#   STAGE=pretrained RUN=qwen3 EXAMPLES=sentence NUM_GPUS=8 bash rl.sh            # from sft_pretrained
#   PAPER=toy DATASET=toystore RUN=quickstart bash rl.sh
#   PAPER=navigen STAGE=dual EXAMPLES=dual bash rl.sh                             # next items and instructions, with a judge
set -euo pipefail

PAPER=${PAPER:-minionerec}
DATASET=${DATASET:-industrial}
SIDS=${SIDS:-rqkmeans}
EXAMPLES=${EXAMPLES:-$SIDS}
RUN=${RUN:-$PAPER-$DATASET}
STAGE=${STAGE:-recommend}           # which SFT stage to start from
NAME=${NAME:-grpo}                  # names the output, and its config where there is one of that name, else it is grpo.yaml
NUM_GPUS=${NUM_GPUS:-1}
TRACKER=${TRACKER:-none}            # none | tensorboard | wandb | swanlab: curves besides metrics.jsonl
TIDS=${TIDS:-terms}                 # of stage 05, where the config has instructions among its tasks
TEACHER=${TEACHER:-}                # item model for rewards that ask one: outputs/<run>/baselines/text
source "$(dirname "$0")/scripts/env.sh"
MODEL=${MODEL:-$OUTPUT_ROOT/$RUN/sft_$STAGE/final}

recipe=grpo
if has_recipe "$NAME"; then recipe=$NAME; fi
config_flags "$recipe"
given=()
for file in "${CONFIGS[@]}"; do      # --config FILE ...
    if [ "$file" = --config ]; then continue; fi
    if grep -qs '^tasks:.*history_to_instruction' "$file"; then given=(--tids "$DATA_ROOT/$DATASET/tids/$TIDS"); fi
done
launch train.grpo "${CONFIGS[@]}" ${given[@]+"${given[@]}"} --model "$MODEL" ${TEACHER:+--teacher "$TEACHER"} \
    --examples "$DATA_ROOT/$DATASET/examples/$EXAMPLES" --sids "$DATA_ROOT/$DATASET/sids/$SIDS" \
    --output_dir "$OUTPUT_ROOT/$RUN/$NAME" --tracker "$TRACKER" "$@"
