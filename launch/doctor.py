"""Says what this machine offers, what jaxseg will use, and what is missing.

python -m launch.doctor
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxseg import machine, seeds
from jaxseg.study.plan.planned import memory_bytes
from jaxseg.study.versions import VERSIONS
from launch import cli, terminal

OPTIONAL = {
    "torch": "launch.import_weights, for checkpoints of PyTorch (pip install 'jaxseg[import]'); the peer in "
    "launch.benchmark",
    "safetensors": "launch.import_weights (pip install 'jaxseg[import]')",
    "flatbuffers": "launch.export --format=jax (pip install 'jaxseg[export]')",
    "SimpleITK": "NRRD and MetaImage files (pip install 'jaxseg[formats]')",
    "tifffile": "TIFF files (pip install 'jaxseg[formats]')",
    "gcsfs": "workdirs at gs://... (pip install 'jaxseg[buckets]')",
    "s3fs": "workdirs at s3://... (pip install 'jaxseg[buckets]')",
    "submitit": "launch.sweep --cluster=slurm (pip install 'jaxseg[slurm]')",
    "mlflow-skinny": "launch.track (pip install 'jaxseg[mlflow]')",
}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> None:
    """Prints the findings; a missing required package is an error of the installation, exit status 1."""
    missing = []
    terminal.say(f"python {sys.version.split()[0]}")
    for name in (*VERSIONS, "nibabel", "ml-collections", "array-record", "pandas", "matplotlib"):
        version = _version(name)
        terminal.say(f"{name} {version or 'MISSING'}")
        missing += [] if version else [name]
    for name, use in OPTIONAL.items():
        terminal.say(f"{name} {_version(name) or f'not installed; used by {use}'}")

    devices = jax.local_devices()
    terminal.say(f"\ndevices: {len(devices)} x {devices[0].device_kind} ({devices[0].platform})")
    terminal.say(f"memory: {memory_bytes(len(devices)) / 2**30:.1f} GiB; CPU cores: {machine.cores()}")
    terminal.say(f"free disk here: {shutil.disk_usage('.').free / 2**30:.1f} GiB")
    if devices[0].platform == "cpu" and shutil.which("nvidia-smi"):
        terminal.say("an NVIDIA driver is here but JAX sees no GPU: pip install 'jaxseg[cuda]'")
    plan = seeds.make_plan(10**9)
    terminal.say(f"seeds will be mapped by {plan.strategy!r} over {len(plan.devices)} device(s)")
    cache = jax.config.values["jax_compilation_cache_dir"]
    if cache is None:
        terminal.say("compiled programs are not kept: no folder for them can be written; XDG_CACHE_HOME may name one")
    else:
        terminal.say(f"compiled programs are kept in {cache} ({'there' if Path(cache).exists() else 'empty'})")
    data = os.environ.get("JAXSEG_DATA")
    terminal.say(f"JAXSEG_DATA: {data or 'not set; msd: tasks are fetched when asked for'}")

    mapped = seeds.map_seeds(lambda seed: jnp.square(seed), plan=seeds.make_plan(4))
    values = seeds.fetch(mapped(seeds.put(jnp.arange(4.0), seeds.make_plan(4))), 4)
    terminal.say(f"a mapped program runs: {'yes' if values.tolist() == [0, 1, 4, 9] else 'NO, it gave ' + str(values)}")
    if missing:
        raise RuntimeError(f"required packages are missing: {', '.join(missing)}; pip install -e . mends it")


if __name__ == "__main__":
    cli.run(main)
