#!/usr/bin/env bash
# Everything that is measured on a GPU, in one go of a few minutes; the tables come into one folder.
#
#     benchmarks/gpu.sh FOLDER [options of benchmarks/gpu.py]
#
# PYTHON names the interpreter (python3 if it is not set); with PyTorch in it, PyTorch is measured too.
set -euo pipefail
folder=$(realpath -m "${1:?give a folder for the tables}")
shift
cd "$(dirname "$0")/.."
mkdir -p "$folder"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv > "$folder/gpu.csv" || true
"${PYTHON:-python3}" -m benchmarks.gpu "$folder" "$@" 2>&1 | tee "$folder/gpu.log"
