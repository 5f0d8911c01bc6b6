# SPDX-License-Identifier: Apache-2.0
# Sourced by the other scripts: goes to the repository's root and makes .venv, or reuses it while it is up to date.
# Python is $PYTHON if set, else python3, else python; 3.10 or newer.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\n== %s\n' "$*" >&2; }

find_python() {
    local candidate found
    for candidate in ${PYTHON:+"$PYTHON"} python3 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            found=$(command -v "$candidate")
            case $found in # what made .venv, where that is active: it cannot remake itself
            "$PWD"/.venv/*) found=$("$found" -c 'import sys; print(sys._base_executable)') ;;
            esac
            echo "$found"
            return
        fi
        if [ -n "${PYTHON:-}" ]; then break; fi
    done
    echo "error: found no Python 3.10 or newer${PYTHON:+ at PYTHON=$PYTHON}; install one, or set PYTHON to its path" >&2
    return 1
}

# use_venv EXTRAS [PACKAGE...]: .venv with the project, its extras and more packages, first on PATH. It is made anew when
# Python, pyproject.toml or the pinned toolchain changed, and only added to otherwise.
use_venv() {
    local base stamp wanted="$*" extras=$1
    shift
    base=$(find_python)
    stamp=$("$base" - <<'PY'
import hashlib, pathlib, sys

state = hashlib.sha256(f"{sys.version} {sys.executable} {pathlib.Path.cwd()}".encode())
for name in ("pyproject.toml", "scripts/toolchain.txt"):
    state.update(pathlib.Path(name).read_bytes())
print(state.hexdigest())
PY
    )
    if [ "$(head -n 1 .venv/stamp 2>/dev/null)" != "$stamp" ]; then
        say "making .venv with $("$base" --version)"
        rm -rf .venv
        "$base" -m venv .venv
        echo "$stamp" >.venv/stamp
    fi
    if ! grep -qxF "installed $wanted" .venv/stamp; then
        say "installing $wanted"
        local pip=(.venv/bin/python -m pip install --quiet --disable-pip-version-check)
        "${pip[@]}" --editable ".[$extras]" "$@"
        # Torch brings an NVRTC of its own; what builds cubins is pinned.
        "${pip[@]}" --no-deps --requirement scripts/toolchain.txt
        echo "installed $wanted" >>.venv/stamp
    fi
    export PATH="$PWD/.venv/bin:$PATH" VIRTUAL_ENV="$PWD/.venv"
    unset PYTHONHOME
}
