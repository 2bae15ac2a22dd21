#!/bin/sh
# Install traind with its trainer into a virtual environment:
#
#   sh docker/install.sh VENV [EXTRAS [--editable | --no-editable]]
#
# EXTRAS "" is the control plane alone, without torch.
#
# torch comes first and pinned. On Linux the package index' own torch brings gigabytes of CUDA
# libraries: without an NVIDIA GPU that is refused, and TORCH_INDEX_URL says where to take another
# build from (the value is on PyTorch's install page, for CPU or for a CUDA version).
set -eu
venv=$1
extras=${2-trainer}
how=${3---editable}
here=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
torch=$(sed -n 's/^torch==/torch==/p' "$here/constraints.txt")
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
pip="$venv/bin/python -m pip --disable-pip-version-check"

# the driver of Linux, a GPU given to a container, WSL's (whose driver is Windows' own)
has_gpu() {
    [ -e /proc/driver/nvidia/version ] || [ -e /dev/nvidia0 ] || [ -e /dev/dxg ] ||
        nvidia-smi -L >/dev/null 2>&1
}

wants_cuda() {
    $pip install --quiet --dry-run --report - "$torch" 2>/dev/null | grep -q '"name": "nvidia-'
}

case ",$extras," in
*,trainer,*)
    if "$venv/bin/python" -c "import torch" 2>/dev/null; then
        :
    elif [ -n "${TORCH_INDEX_URL:-}" ]; then
        $pip install --quiet --index-url "$TORCH_INDEX_URL" "$torch"
    elif ! has_gpu && wants_cuda; then
        cat >&2 <<'TEXT'
This machine has no NVIDIA GPU, and torch from its package index would bring gigabytes of CUDA
libraries. Take the CPU build instead:

    make setup TORCH_INDEX_URL=<the index that PyTorch's install page shows for pip and CPU>

TEXT
        exit 1
    else
        $pip install --quiet "$torch"
    fi
    ;;
esac
case $how in
--editable) set -- --editable "$here${extras:+[$extras]}" ;;
--no-editable) set -- "$here${extras:+[$extras]}" ;;
*) echo "install.sh: $how: --editable or --no-editable" >&2 && exit 2 ;;
esac
$pip install --quiet --constraint "$here/constraints.txt" "$@"
