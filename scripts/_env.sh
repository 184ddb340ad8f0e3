# Sourced by the other scripts: makes .venv and installs guidex into it, if that is not done yet.
# A stamp records what was installed, so that a repeated call costs nothing and an interrupted
# installation is made again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
    for name in "${PYTHON:-}" python3.13 python3.12 python3.11 python3 python; do
        if [ -n "$name" ] && command -v "$name" >/dev/null 2>&1 &&
            "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    echo "guidex needs Python 3.11, 3.12 or 3.13; set PYTHON=/path/to/python3.12" >&2
    exit 1
}

# install EXTRAS: for example install "" or install "[test]"
install() {
    local stamp=".venv/.guidex$1"
    if [ -x .venv/bin/python ] && [ -f "$stamp" ] && cmp -s pyproject.toml "$stamp"; then
        return
    fi
    if [ ! -x .venv/bin/python ] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        local python
        python=$(find_python)
        echo "Making a virtual environment in .venv with $("$python" --version)"
        "$python" -m venv --clear .venv
    fi
    echo "Installing guidex$1 into .venv (PyTorch is large; once only)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".$1"
    cp pyproject.toml "$stamp"
}
