#!/usr/bin/env bash
# One stage after the other, from a raw folder to the results page, to pictures and videos (13: IMAGE_MODEL, 14: VIDEO_MODEL).
#   reads   $RAW (01 only), and what the stages read
#   writes  $DATA_ROOT/$DATASET, $OUTPUT_ROOT/$RUN, its report/index.html
#   takes   what its stages take (README); each says so when it begins. What is finished is kept: run it again to go on
# Edit the variables, or override:
#   DATASET=shop RAW=/path/to/tables bash scripts/chain.sh
#   DATASET=published SIDS=published STAGES="07 baselines 08 09 11" bash scripts/chain.sh     # after scripts/import_release.sh
#   PAPER=toy DATASET=toystore RUN=quickstart STAGES="10 11" bash scripts/chain.sh
#   MODEL=/path/to/Qwen3-1.7B RUN=qwen3 STAGE=pretrained bash scripts/chain.sh                # MODEL is that of the first stage that reads one
#   PAPER=best DATASET=shop RAW=/path/to/tables MINUTES=30 bash scripts/chain.sh              # the best small recipe, sizes from the data
set -euo pipefail

PAPER=${PAPER:-minionerec}
DATASET=${DATASET:-industrial}
STAGE=${STAGE:-recommend}           # which SFT stage
STAGES=${STAGES:-}                  # in this order; 10 is GRPO, 11 evaluates the stage trained last. Empty: the default below
MINUTES=${MINUTES:-30}              # of the stage plan: how long all of it may take, by forecast
source "$(dirname "$0")/env.sh"
if [ "$PAPER" = best ]; then recipe="01 plan 02 04 07 baselines teacher generator report"; else recipe="01 02 04 07 baselines 08 09 11"; fi
STAGES=${STAGES:-$recipe}
RUN=${RUN:-$PAPER-$DATASET}
export PAPER DATASET STAGE
unset NAME                          # every stage names its own output here

trained=sft_$STAGE
for number in $STAGES; do
    case $number in
        01) bash scripts/01_prepare_data.sh ;;
        02) bash scripts/02_embed_items.sh ;;
        03) bash scripts/03_complete_tags.sh ;;
        04) bash scripts/04_build_sids.sh ;;
        05) bash scripts/05_generate_tids.sh ;;
        06) bash scripts/06_write_reasoning.sh ;;
        07) bash scripts/07_build_examples.sh ;;
        08) bash scripts/08_expand_vocab.sh; unset MODEL ;;
        09) bash sft.sh; unset MODEL; trained=sft_$STAGE ;;
        10) bash rl.sh; unset MODEL; trained=grpo ;;
        11) NAME=$trained bash evaluate.sh ;;
        12) NAME=$trained bash scripts/12_instruct.sh ;;
        13) NAME=$trained MODEL=${IMAGE_MODEL:-} bash scripts/13_generate_images.sh ;;
        14) NAME=$trained MAKER=${MAKER:-${VIDEO_MODEL:+diffusers}} MODEL=${VIDEO_MODEL:-} bash scripts/14_generate_videos.sh ;;
        baselines) bash scripts/train_baselines.sh ;;
        plan)
            export PLAN=$OUTPUT_ROOT/$RUN/plan
            "$PYTHON" -m configs.sizes --data "$DATA_ROOT/$DATASET" --minutes "$MINUTES" --output_dir "$PLAN"
            source "$PLAN/choices.sh"
            ;;
        teacher) bash scripts/train_teacher.sh ;;
        generator) NAME=compact_distilled TEACHER=$OUTPUT_ROOT/$RUN/baselines/teacher bash scripts/train_compact.sh ;;
        report)
            "$PYTHON" -m infer.report --data "$DATA_ROOT/$DATASET" --sids "$DATA_ROOT/$DATASET/sids/${SIDS:-rqkmeans}" \
                --run "$OUTPUT_ROOT/$RUN" --output_dir "$OUTPUT_ROOT/$RUN/report"
            ;;
        *)
            echo "ERROR 2: STAGES has $number -> 01 02 03 04 05 06 07 08 09 10 11 12 13 14, baselines, plan, teacher, generator or report" >&2
            exit 2
            ;;
    esac
done
