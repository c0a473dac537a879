# Sourced by every stage script: goes to the repository root, chooses the Python, sets the roots. Not a program.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export TOKENIZERS_PARALLELISM=${TOKENIZERS_PARALLELISM:-false}
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}     # nothing is downloaded unless you set this to 0
DATA_ROOT=${DATA_ROOT:-data}                   # data sets
OUTPUT_ROOT=${OUTPUT_ROOT:-outputs}            # runs
if [ -z "${PYTHON:-}" ]; then
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi
fi
if [ -n "${DATASET:-}" ] && { [ -e "data/$DATASET.py" ] || [ -e "data/$DATASET/__init__.py" ]; }; then
    echo "ERROR 2: DATASET=$DATASET is the name of a module or room in data/ -> choose another name" >&2
    exit 2
fi

# Trainers: one process, or NUM_GPUS of them through accelerate.
launch() {
    if [ "${NUM_GPUS:-1}" -gt 1 ]; then
        "$PYTHON" -m accelerate.commands.launch --config_file "${ACCELERATE_CONFIG:-configs/accelerate/ddp.yaml}" \
            --num_processes "$NUM_GPUS" -m "$@"
    else
        "$PYTHON" -m "$@"
    fi
}
