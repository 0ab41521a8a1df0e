"""Seconds per seed and training step, for workloads, strategies and precisions, beside PyTorch's.

    python -m launch.benchmark [--workload=NAME[,NAME]] [--seeds=1,2,4,8] [--json=FILE]
    python -m launch.benchmark --study [--pair=2d,3d] [--data=FOLDER] [--torch_python=PYTHON] [--json=FILE]

The second form measures whole studies, from a folder of images to a decided answer, by stage. The measuring is done by
`benchmarks.training` and `benchmarks.answer`; `--help` lists every option.
"""

from __future__ import annotations

from benchmarks import answer, training
from launch import cli


def main() -> None:
    """Measures steps or, with --study, whole studies."""
    if answer.STUDY.value:
        answer.main()
    else:
        training.main()


if __name__ == "__main__":
    # The contestants set up JAX; this process measures the machine with JAX as it comes.
    cli.run(main, set_up=lambda: None)
