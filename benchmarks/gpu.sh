#!/bin/sh
# Everything that is measured on a GPU, in one go of a few minutes; the tables come into one folder.
#
#     benchmarks/gpu.sh FOLDER
#
# PYTHON names the interpreter (python3 if it is not set); with PyTorch in it, PyTorch is measured too.
set -eu
folder=${1:?give a folder for the tables}
mkdir -p "$folder"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv > "$folder/gpu.csv" || true
"${PYTHON:-python3}" -m benchmarks.gpu "$folder" 2>&1 | tee "$folder/gpu.log"
