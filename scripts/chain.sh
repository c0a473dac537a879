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
#   PAPER=best DATASET=shop RAW=/path/to/tables PLAN_MINUTES=30 bash scripts/chain.sh              # the best small recipe, sizes from the data
#   SUBMIT=slurm NUM_NODES=2 NUM_GPUS=8 RUN=qwen3 STAGE=pretrained STAGES="09 10 11" bash scripts/chain.sh
#   DRY_RUN=1 SUBMIT=slurm STAGES="09 11" bash scripts/chain.sh                               # the exact commands, nothing is submitted
set -euo pipefail

PAPER=${PAPER:-minionerec}
DATASET=${DATASET:-industrial}
STAGE=${STAGE:-recommend}           # which SFT stage
STAGES=${STAGES:-}                  # in this order; 10 is GRPO, 11 evaluates the stage trained last. Empty: the default below
PLAN_MINUTES=${PLAN_MINUTES:-30}    # of the stage plan: how long all of it may take, by forecast
PLAN_SPEED=${PLAN_SPEED:-}          # of the stage plan: how fast the machine is, 2.0 is twice the one that was measured; empty: a probe says it
OVERWRITE=${OVERWRITE:-}            # 1: all STAGES and the plan anew, as after a change of the data; an old output stays until its new one is finished
SUBMIT=${SUBMIT:-}                  # slurm: every stage becomes a job that waits for the one before (scripts/slurm)
source "$(dirname "$0")/env.sh"
no_flags "$@"
if [ "$PAPER" = best ]; then
    recipe="01 plan 02 04 07 baselines teacher generator ensemble report"
    floors="pop last recent itemknn itemknn_tuned mixture"      # the mixture, a part of the teacher, is the best floor of many data sets
    export QUANTIZER=${QUANTIZER-balanced}      # the winner of scripts/reproduce/which_sids.sh (rq/README.md); empty: residual k-means
    export SIDS=${SIDS:-${QUANTIZER:-rqkmeans}} WEIGHTS=${WEIGHTS-likelihood}
    case $WEIGHTS in "" | likelihood) ;; *) echo "ERROR 2: WEIGHTS=$WEIGHTS -> likelihood, or empty for fixed ones" >&2; exit 2 ;; esac
else
    recipe="01 02 04 07 baselines 08 09 11"
fi
STAGES=${STAGES:-$recipe}
RUN=${RUN:-$PAPER-$DATASET}
export PAPER DATASET STAGE
unset NAME                          # every stage names its own output here

case $OVERWRITE:$SUBMIT in
    : | :* | 1:) ;;
    1:*) echo "ERROR 2: OVERWRITE=1 is not for jobs -> run the scripts with --overwrite, or without SUBMIT" >&2; exit 2 ;;
    *) echo "ERROR 2: OVERWRITE=$OVERWRITE -> 1, or leave it out" >&2; exit 2 ;;
esac
stage() { bash "$1" ${OVERWRITE:+--overwrite}; }
case $SUBMIT in
    "") ;;
    slurm)
        case " $STAGES " in *" plan "* | *" report "*)
            echo "ERROR 2: STAGES=\"$STAGES\": plan and report are no jobs -> run them without SUBMIT, the others with it" >&2
            exit 2
            ;;
        esac
        source scripts/slurm/submit.sh
        ;;
    *) echo "ERROR 2: SUBMIT=$SUBMIT -> slurm, or leave it out" >&2; exit 2 ;;
esac

for number in $STAGES; do           # all of them before the first one runs
    case $number in
        0[1-9] | 1[0-4] | baselines | plan | teacher | generator | ensemble | report) ;;
        *)
            echo "ERROR 2: STAGES has $number -> 01 02 03 04 05 06 07 08 09 10 11 12 13 14, baselines, plan, teacher, generator, ensemble or report" >&2
            exit 2
            ;;
    esac
done

trained=sft_$STAGE
for number in $STAGES; do
    # A plan that an earlier call made is this one's too: stages may come one by one, or as jobs. Not before 01, which may bring other data.
    case $PAPER:$number in
        best:01 | best:plan) ;;
        best:*) if [ -z "${PLAN:-}" ] && [ -z "${OVERWRITE:+${DRY_RUN:-}}" ]; then take_plan "$OUTPUT_ROOT/$RUN/plan"; fi ;;
    esac
    case $number in
        01) stage scripts/01_prepare_data.sh ;;
        02) stage scripts/02_embed_items.sh ;;
        03) stage scripts/03_complete_tags.sh ;;
        04) stage scripts/04_build_sids.sh ;;
        05) stage scripts/05_generate_tids.sh ;;
        06) stage scripts/06_write_reasoning.sh ;;
        07) stage scripts/07_build_examples.sh ;;
        08) stage scripts/08_expand_vocab.sh; unset MODEL ;;
        09) stage sft.sh; unset MODEL; trained=sft_$STAGE ;;
        10) stage rl.sh; unset MODEL; trained=grpo ;;
        11) NAME=$trained stage evaluate.sh ;;
        12) NAME=$trained stage scripts/12_instruct.sh ;;
        13) NAME=$trained MODEL=${IMAGE_MODEL:-} stage scripts/13_generate_images.sh ;;
        14) NAME=$trained MAKER=${MAKER:-${VIDEO_MODEL:+diffusers}} MODEL=${VIDEO_MODEL:-} stage scripts/14_generate_videos.sh ;;
        baselines) MODELS=${MODELS:-${floors:-}} stage scripts/train_baselines.sh ;;
        plan)
            if [ -n "$OVERWRITE" ] && [ -z "${DRY_RUN:-}" ]; then rm -f "$OUTPUT_ROOT/$RUN/plan/plan.json"; fi
            "$PYTHON" -m configs.sizes --data "$DATA_ROOT/$DATASET" --minutes "$PLAN_MINUTES" \
                ${PLAN_SPEED:+--speed "$PLAN_SPEED"} --output_dir "$OUTPUT_ROOT/$RUN/plan"
            # A dry run leaves the old plan where it is, and the new one is not known.
            if [ -z "${OVERWRITE:+${DRY_RUN:-}}" ]; then take_plan "$OUTPUT_ROOT/$RUN/plan"; fi
            ;;
        teacher) stage scripts/train_teacher.sh ;;
        generator) NAME=compact_distilled TEACHER=$OUTPUT_ROOT/$RUN/baselines/teacher stage scripts/train_compact.sh ;;
        ensemble) NAME=ensemble MEMBERS=teacher,compact_distilled SPLIT= SPLITS="valid test" stage scripts/fuse.sh ;;
        report)
            "$PYTHON" -m infer.report --data "$DATA_ROOT/$DATASET" --sids "$DATA_ROOT/$DATASET/sids/${SIDS:-rqkmeans}" \
                --run "$OUTPUT_ROOT/$RUN" --output_dir "$OUTPUT_ROOT/$RUN/report" ${OVERWRITE:+--overwrite}
            ;;
    esac
done
