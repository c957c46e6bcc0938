#!/bin/sh
# What only a GPU can tell, in at most eight minutes: benchmarks/gpu.py says what. In .venv, or in one made of wheels that
# were carried along:   WHEELS=DIR sh benchmarks/gpu.sh [--cpu] [--cifar DIR] [--only PART ...]
# Such a folder is filled where there is a network, of torch 2.11 for a driver of CUDA 12 as docs/installing.md says:
#     python3 -m pip download -d DIR '.[speech,diffusion,gpu]' 'torch==2.11.*' 'torchaudio==2.11.0' 'torchvision==0.26.*'
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
if [ -n "${WHEELS:-}" ]; then
    PYTHON=.venv-gpu/bin/python
    [ -x "$PYTHON" ] || python3 -m venv .venv-gpu
    "$PYTHON" -m pip install --quiet --no-index --find-links "$WHEELS" setuptools wheel torch torchaudio torchvision
    "$PYTHON" -m pip install --quiet --no-index --find-links "$WHEELS" --no-build-isolation -e '.[speech,diffusion,gpu]'
fi
exec "$PYTHON" benchmarks/gpu.py "$@"
