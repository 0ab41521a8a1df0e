"""Seconds per seed and training step, for workloads, strategies and precisions, beside PyTorch's.

    python -m launch.benchmark [--workload=NAME[,NAME]] [--seeds=1,2,4,8] [--json=FILE]

The measuring is done by `benchmarks.training`; `--help` lists every option.
"""

from __future__ import annotations

from benchmarks import training
from launch import cli

if __name__ == "__main__":
    # The contestants set up JAX; this process measures the machine with JAX as it comes.
    cli.run(training.main, set_up=lambda: None)
