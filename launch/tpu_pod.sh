#!/usr/bin/env bash
# One study on a Cloud TPU, a single host or a pod slice: installs jaxseg on every host, then starts it on all of them.
#
#   TPU=my-v5e-16 ZONE=us-west4-a launch/tpu_pod.sh --config=configs/hippocampus.py --workdir=/mnt/shared/runs/mine
#
# The workdir and the data must lie where every host sees them at the same path, such as a mounted Filestore share
# (nodes of a slice have no disk in common). The slice must exist:
#   gcloud compute tpus tpu-vm create my-v5e-16 --zone=us-west4-a --accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite
set -euo pipefail
: "${TPU:?set TPU to the name of the slice}" "${ZONE:?set ZONE to its zone}"
if [ "$#" -eq 0 ]; then
  echo "error: give the options of launch.study, such as --config=FILE.py --workdir=DIR" >&2
  exit 2
fi
cd "$(dirname "$0")/.."

on_all_hosts() {
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$1"
}

# The code as it is committed here, and an environment with the matching jax; both are kept between starts.
archive="$(mktemp --suffix=.tar.gz)"
trap 'rm -f "$archive"' EXIT
git archive --format=tar.gz --output="$archive" HEAD
gcloud compute tpus tpu-vm scp "$archive" "$TPU":jaxseg.tar.gz --zone="$ZONE" --worker=all
# shellcheck disable=SC2016 # HOME is that of the hosts
on_all_hosts 'mkdir -p jaxseg && tar -xzf jaxseg.tar.gz -C jaxseg && cd jaxseg &&
  { [ -d .venv ] || python3 -m venv .venv; } && .venv/bin/pip install --quiet -e ".[tpu]"'

# Arguments keep their quotes on the way.
options="$(printf '%q ' "$@")"
# JAX learns from the TPU which hosts there are. Give the command again to go on from the last checkpoint.
on_all_hosts "cd jaxseg && .venv/bin/python -u -m launch.study --distributed $options"
