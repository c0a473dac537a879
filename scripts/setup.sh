#!/usr/bin/env bash
# The environment: .venv with the exact packages of requirements.txt; --dev adds requirements-dev.txt (lint and tests).
#   reads   requirements.txt, requirements-dev.txt
#   writes  .venv, its setup.stamp last: an interrupted set-up is repeated, a finished one is kept
#   takes   about two minutes and 2.0 GB on 2 cores with CPU wheels; a moment when nothing has changed
# PYTHON=/path/to/python3.12 proposes an interpreter (then: python3, python3.12, python3.11, python3.13; the first that
# runs, is 3.11-3.13 and can make an environment). TORCH_INDEX_URL=<PyTorch's index of CPU wheels> takes torch, and
# only torch, from there: a machine without a GPU is then spared 2.8 GB of CUDA wheels.
# Exit codes: 0 ready, 2 unknown flag, 3 no Python, no disk or no network, 130/143 interrupted.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/find_python.sh

VENV=.venv/bin/python
STAMP=.venv/setup.stamp
unset PYTHONHOME
export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1     # a user's `pip --user` default does not work inside a .venv

say() { echo "setup: $*"; }
fail() { echo "ERROR 3: $*" >&2; exit 3; }
interrupted() { echo "INTERRUPTED $1: set-up -> run the same command again" >&2; exit "$1"; }
trap 'interrupted 130' INT
trap 'interrupted 143' TERM

files=(requirements.txt)
case "${1:-}" in
    "") ;;
    --dev) files+=(requirements-dev.txt) ;;
    -h | --help)
        source scripts/flags.sh
        script_head
        exit 0
        ;;
    *) echo "ERROR 2: scripts/setup.sh: unknown flag $1 -> only --dev is known" >&2; exit 2 ;;
esac

# What a finished set-up of $files leaves in the stamp: Python's version, then a hash per requirement file.
wanted_stamp() {
    "$VENV" -I -c '
import hashlib, sys
print("python %d.%d" % sys.version_info[:2])
for name in sys.argv[1:]:
    print(name, hashlib.sha256(open(name, "rb").read()).hexdigest())' "${files[@]}" 2>/dev/null </dev/null
}

finished() {
    local wanted
    [ -f "$STAMP" ] && wanted=$(wanted_stamp) && [[ "$(cat "$STAMP")" == "$wanted"* ]]
}

leave_if_finished() {
    if finished; then
        say ".venv is ready"
        exit 0
    fi
}

usable_venv() { supported "$(run_python "$VENV")" && "$VENV" -I -m pip --version >/dev/null 2>&1; }

# make_venv_with PATH: through ensurepip, or through virtualenv where a distribution ships Python without it.
make_venv_with() {
    local module
    for module in venv virtualenv; do
        if "$1" -m "$module" --clear .venv >/dev/null 2>&1 </dev/null && usable_venv; then return 0; fi
    done
    rm -rf .venv
    return 1
}

# Make .venv with the first candidate that can.
make_venv() {
    local name found version base unfit="" lacking=""
    while read -r name; do
        if ! found=$(run_python "$name"); then
            unfit+="; $name does not run"
        elif ! supported "$found"; then
            unfit+="; $name is ${found%% *}"
        else
            version=${found%% *} base=${found#* }
            [ -z "${PYTHON:-}" ] || [ -z "$unfit" ] || say "passed over: ${unfit#; }"
            say "making .venv with Python $version ($base)"
            if make_venv_with "$base"; then return 0; fi
            lacking=${lacking:-"Python $version lacks ensurepip -> apt install python3-venv, or: $base -m pip install virtualenv"}
        fi
    done < <(python_candidates)
    fail "${lacking:-"no Python 3.11-3.13 (${unfit#; }) -> install one, or name one: PYTHON=/path/to/python3.12"}"
}

pip_install() {
    "$VENV" -m pip install --quiet --no-input "$@" \
        || fail "pip could not install (its message is above) -> check network, index and disk, then run again"
}

has_torch() { "$VENV" -I -c 'import importlib.metadata as m; m.version("torch")' >/dev/null 2>&1; }

install_packages() {
    local file
    if [ -n "${TORCH_INDEX_URL:-}" ]; then
        say "installing torch from TORCH_INDEX_URL"
        pip_install --index-url "$TORCH_INDEX_URL" --no-deps "$(grep -E '^torch==' requirements.txt)"
    elif [ "$(uname -s)" = Linux ] && ! has_torch && ! nvidia-smi -L >/dev/null 2>&1; then
        say "no GPU here: TORCH_INDEX_URL=<PyTorch's index of CPU wheels> would spare you the CUDA wheels"
    fi
    for file in "${files[@]}"; do
        say "installing $file ($(grep -cE '^[A-Za-z]' "$file") packages and what they need)"
        pip_install -r "$file"
    done
}

leave_if_finished
# One set-up at a time. The lock is on this very file: opened for appending, never written to.
if command -v flock >/dev/null 2>&1 && { exec 9>>scripts/setup.sh; } 2>/dev/null && ! flock --nonblock 9; then
    say "waiting for another set-up of this directory"
    flock 9
    leave_if_finished
fi
rm -f "$STAMP"
if ! usable_venv; then
    [ ! -e .venv ] || say ".venv is incomplete or of another Python: it is made again"
    make_venv
fi
install_packages
wanted_stamp > "$STAMP.tmp"
mv "$STAMP.tmp" "$STAMP"
say ".venv is ready ($SECONDS s)"
