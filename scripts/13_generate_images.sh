#!/usr/bin/env bash
# 13  A picture for every instruction by a local Z-Image, how well pictures fit prompts and histories, and a gallery.
#   reads   $MODEL (a diffusers directory), $OUTPUT_ROOT/$RUN/instructions/$NAME.$SPLIT[.$INSTRUCT_MODE] (12), $DATA_ROOT/$DATASET; $CLIP
#   writes  $OUTPUT_ROOT/$RUN/{images/,gallery/images.}$NAME.$SPLIT[.$INSTRUCT_MODE][.oracle]
#   takes   not run on a GPU. Published: 8 steps of a 6B model per picture
# Edit the variables, or override:
#   DATASET=industrial MODEL=/path/to/Z-Image-Turbo CLIP=/path/to/clip NUM_GPUS=4 bash scripts/13_generate_images.sh
#   DATASET=industrial MODEL=/path/to/Z-Image bash scripts/13_generate_images.sh --zimage.recipe base --zimage.negative_prompt "text"
#   DATASET=industrial SOURCE=oracle bash scripts/13_generate_images.sh --requests.sample 100      # the teacher's instructions
#   bash scripts/13_generate_images.sh --dry_run                                                   # what would be drawn, with which seed
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
MODEL=${MODEL:-Z-Image-Turbo}       # local directory
CLIP=${CLIP:-}                      # local CLIP or SigLIP; without it no similarities
ITEM_IMAGES=${ITEM_IMAGES:-}        # folder of item pictures, <raw_id>.jpg
NUM_GPUS=${NUM_GPUS:-1}
GALLERY_ARGS=${GALLERY_ARGS:-}      # flags of generation.evaluate_media; trailing flags go to generation.generate_images
source "$(dirname "$0")/env.sh"
name_media

share_flags "generation.generate_images generation.evaluate_media" "$@"
config_flags images
launch generation.generate_images "${CONFIGS[@]}" --model "$MODEL" --instructions "$OUTPUT_ROOT/$RUN/instructions/$WRITTEN" \
    --examples "$DATA_ROOT/$DATASET/examples/$EXAMPLES" --requests.source "$SOURCE" --dataset "$DATASET" \
    --output_dir "$OUTPUT_ROOT/$RUN/images/$MEDIA" "$@"
show_media images "$@"
