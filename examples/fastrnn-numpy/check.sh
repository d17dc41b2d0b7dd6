#!/usr/bin/env bash
# The backend as its users meet it: both wheels are built, installed into a fresh environment and
# run from a foreign directory; then the backend is uninstalled again, and gone.
#
#   PYTHON=path/to/python examples/fastrnn-numpy/check.sh
#
# PYTHON, by default the Makefile's, has torch, pytest, setuptools and wheel. They are not installed
# a second time: the fresh environment looks for what it lacks where PYTHON has it. A fastrnn that is
# installed there must not be found instead, and that it is not is checked.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
unset PYTHONPATH
export PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export FASTRNN_CACHE_DIR=$work/cache
unset FASTRNN_BACKEND FASTRNN_DISABLE_PLUGINS

echo "== build the two wheels, from copies: building leaves files behind"
mkdir tree
tar -C "$root" --exclude='.[!.]*' --exclude=__pycache__ --exclude=build --exclude='*.egg-info' -cf - \
    fastrnn kernels plugins examples/fastrnn-numpy pyproject.toml README.md LICENSE | tar -C tree -xf -
"$python" -m pip wheel -q --no-deps --no-build-isolation --no-index -w wheels \
    ./tree ./tree/examples/fastrnn-numpy

echo "== install them into a fresh environment"
"$python" -m venv --without-pip fresh # PYTHON's pip will do
fresh=$work/fresh/bin/python
pip=("$python" -m pip --python "$fresh")
"${pip[@]}" install -q --no-deps --no-index wheels/*.whl
"$python" - >others.pth <<'LENDER'
import sysconfig
print(sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), sep="\n")
LENDER
site=$("$fresh" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
mv others.pth "$site"

mkdir elsewhere
cd elsewhere
"$fresh" - "$work/fresh" <<'WHERE'
import sys
import fastrnn, fastrnn_numpy, fastrnn_reference, fastrnn_kernels
for module in (fastrnn, fastrnn_numpy, fastrnn_reference, fastrnn_kernels):
    assert module.__file__.startswith(sys.argv[1]), f"{module.__name__} is {module.__file__}"
print("fastrnn", fastrnn.__version__, "of the wheel")
WHERE

echo "== the conformance suite, by command and by pytest, and the backend's own tests"
"$fresh" -m fastrnn conformance numpy 2>/dev/null
"$fresh" -m pytest -q -p no:cacheprovider --pyargs fastrnn.testing --backend numpy -k parity | tail -n 1
cp "$here/test_fastrnn_numpy.py" .
"$fresh" -m pytest -q -p no:cacheprovider test_fastrnn_numpy.py

echo "== uninstalled it is gone, and fastrnn is as before"
"${pip[@]}" uninstall -q -y fastrnn-numpy
"$fresh" -W error - <<'LEFT'
import torch
import fastrnn
from fastrnn.plugins import registry
names = [record.name for record in registry().plugins]
assert "numpy" not in names and "reference" in names, names
fastrnn.LSTM(3, 4)(torch.randn(5, 2, 3))
LEFT
echo "gone"
