#!/usr/bin/env bash
# NaviGen's second half on the generated store, behind scripts/quickstart.sh and scripts/quickstart_instruct.sh: a picture and a video for
# some of the instructions, measures, galleries, and the results page that links them.
#   reads   $DATA_ROOT/toystore, $OUTPUT_ROOT/$RUN/instructions/sft_dual.test
#   writes  $OUTPUT_ROOT/$RUN/{tiny_models,images,videos,gallery,report}
#   takes   what generation/README.md says, 2 cores, no GPU
# Tiny random models draw noise here, and every output says so. Real ones by variables, with the recipes of configs/navigen then:
#   IMAGE_MODEL=/path/to/Z-Image-Turbo CLIP=/path/to/clip VIDEO_MODEL=/path/to/Wan2.1-T2V-1.3B-Diffusers bash scripts/quickstart_media.sh
# Every stage that is finished is kept: run it again after an interruption and it goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/flags.sh
no_flags "$@"

# A shell's own settings are not the quickstart's.
unset MODEL EXAMPLES NAME SPLIT INSTRUCT_MODE CONFIG SOURCE MAKER ITEM_IMAGES GALLERY_ARGS NUM_GPUS NUM_NODES NODE_RANK SUBMIT DRY_RUN ENGINE ACCELERATE_CONFIG
IMAGE_MODEL=${IMAGE_MODEL:-}
VIDEO_MODEL=${VIDEO_MODEL:-}
CLIP=${CLIP:-}
export PAPER=toy DATASET=toystore RUN=${RUN:-quickstart}
source scripts/env.sh
export PYTHON DATA_ROOT OUTPUT_ROOT
WRITTEN=$OUTPUT_ROOT/$RUN/instructions/sft_dual.test
if [ ! -d "$WRITTEN" ]; then
    echo "ERROR 2: there is no $WRITTEN -> run scripts/quickstart.sh and scripts/quickstart_instruct.sh first" >&2
    exit 2
fi

TINY=$OUTPUT_ROOT/$RUN/tiny_models
if [ -z "$IMAGE_MODEL" ] || [ -z "$VIDEO_MODEL" ] || [ -z "$CLIP" ]; then
    "$PYTHON" -m generation.init_tiny_models --output_dir "$TINY"
fi
export CLIP=${CLIP:-$TINY/tiny-random-clip}
recipe() { if [ -n "$1" ]; then echo navigen; else echo toy; fi; }
PAPER=$(recipe "$IMAGE_MODEL") MODEL=${IMAGE_MODEL:-$TINY/tiny-random-zimage} bash scripts/13_generate_images.sh
PAPER=$(recipe "$VIDEO_MODEL") MAKER=diffusers MODEL=${VIDEO_MODEL:-$TINY/tiny-random-wan} bash scripts/14_generate_videos.sh
"$PYTHON" -m infer.report --data "$DATA_ROOT/$DATASET" --sids "$DATA_ROOT/$DATASET/sids/rqkmeans" --run "$OUTPUT_ROOT/$RUN" \
    --output_dir "$OUTPUT_ROOT/$RUN/report"
echo "galleries: $OUTPUT_ROOT/$RUN/gallery/{images,videos}.sft_dual.test/index.html"
