#!/usr/bin/env bash
# 14  A video for every instruction, by Open-Sora in its own environment or a diffusers pipeline, measured, and a gallery.
#   reads   $OUTPUT_ROOT/$RUN/instructions/$NAME.$SPLIT[.$INSTRUCT_MODE] (12), $DATA_ROOT/$DATASET; $CLIP; maker diffusers: $MODEL;
#           maker opensora: the checkout $OPENSORA_HOME, run by $OPENSORA_PYTHON
#   writes  $OUTPUT_ROOT/$RUN/{videos/,gallery/videos.}$NAME.$SPLIT[.$INSTRUCT_MODE][.oracle]
#   takes   not run. Published: a minute per video of 256 pixels, half an hour of 768, by the 11B model on one H100
# Edit the variables, or override:
#   OPENSORA_HOME=/path/to/Open-Sora OPENSORA_PYTHON=/path/to/its/python DATASET=industrial bash scripts/14_generate_videos.sh
#   CUDA_VISIBLE_DEVICES=0,1 DATASET=industrial bash scripts/14_generate_videos.sh --requests.first 8 --dry_run    # the exact commands
#   DATASET=industrial bash scripts/14_generate_videos.sh --opensora.version v2 --opensora.resolution 256px
#   MAKER=diffusers MODEL=/path/to/Wan2.1-T2V-1.3B-Diffusers DATASET=industrial bash scripts/14_generate_videos.sh
# --overwrite and --help reach both programs; with --dry_run there is no gallery.
set -euo pipefail

PAPER=${PAPER:-navigen}
DATASET=${DATASET:-industrial}
RUN=${RUN:-$PAPER-$DATASET}
NAME=${NAME:-sft_dual}              # whose instructions
SPLIT=${SPLIT:-test}                # test | valid
INSTRUCT_MODE=${INSTRUCT_MODE:-direct_json_prefix}  # of stage 12
SOURCE=${SOURCE:-prediction}        # prediction | oracle (the teacher's instructions, from EXAMPLES)
EXAMPLES=${EXAMPLES:-dual}
MAKER=${MAKER:-opensora}            # opensora | diffusers (then MODEL, a Wan or LTX directory)
MODEL=${MODEL:-}
CLIP=${CLIP:-}                      # local CLIP or SigLIP; without it no similarities
ITEM_IMAGES=${ITEM_IMAGES:-}        # folder of item pictures, <raw_id>.jpg
NUM_GPUS=${NUM_GPUS:-1}             # of maker diffusers; Open-Sora takes all that CUDA_VISIBLE_DEVICES shows
GALLERY_ARGS=${GALLERY_ARGS:-}      # flags of generation.evaluate_media; trailing flags go to generation.generate_videos
source "$(dirname "$0")/env.sh"
name_media

share_flags "generation.generate_videos generation.evaluate_media" "$@"
config_flags videos
launch generation.generate_videos "${CONFIGS[@]}" --maker "$MAKER" ${MODEL:+--model "$MODEL"} \
    --instructions "$OUTPUT_ROOT/$RUN/instructions/$WRITTEN" --examples "$DATA_ROOT/$DATASET/examples/$EXAMPLES" \
    --requests.source "$SOURCE" --dataset "$DATASET" --output_dir "$OUTPUT_ROOT/$RUN/videos/$MEDIA" "$@"
show_media videos "$@"
