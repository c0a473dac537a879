# Sourced by setup.sh and doctor.sh from the repository root: which Pythons could carry the environment. Not a program.

# The names, in the order they are tried. One on PATH can be a dead shim, so each is run and not only looked up.
python_candidates() {
    printf '%s\n' ${PYTHON:+"$PYTHON"} python3 python3.12 python3.11 python3.13
}

# run_python NAME -> "<version> <path>" of the interpreter behind NAME; fails where it does not run.
# Behind a Python of our own .venv stands the one that made it: .venv may be about to be made again.
run_python() {
    "$1" -I -c '
import os, sys
path = sys.executable
if os.path.realpath(sys.prefix) == os.path.realpath(".venv"):
    path = os.path.join(sys.base_prefix, "bin", "python%d.%d" % sys.version_info[:2])
print("%d.%d.%d" % sys.version_info[:3], path)' 2>/dev/null </dev/null
}

# supported "<version> <path>": Python 3.11-3.13.
supported() {
    case $1 in 3.11.* | 3.12.* | 3.13.*) return 0 ;; *) return 1 ;; esac
}
