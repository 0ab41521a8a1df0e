"""What is left of a training step's speed beside other work on the same cores, ours and PyTorch's.

    python -m benchmarks.contention [--workload=unet3d_32] [--burners=0,1,2] [--rounds=5] [--elsewhere]

A burner is a process that never sleeps. In every round each contestant takes one sample beside each number of burners,
so that all see the same machine, and the table holds medians. Burners share our session; with `--elsewhere` each has
one of its own. Linux may divide cores between sessions first and between threads second (`sched_autogroup_enabled`):
then one burner elsewhere is owed as much as all threads of a study together, and two cores leave each of them one.

The `fair` column is what a scheduler gives that treats all threads alike: with two threads on two cores, beside one
burner, two thirds. PyTorch is measured where it is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.contestants import Contestant
from benchmarks.training import CLASSES, WORKLOADS
from jaxseg.machine import cores as cores_of_process
from launch import terminal


@contextlib.contextmanager
def burning(count: int, *, elsewhere: bool) -> Iterator[None]:
    """Keeps a number of processes busy meanwhile."""
    command = [sys.executable, "-c", "while True: pass"]
    burners = [subprocess.Popen(command, start_new_session=elsewhere) for _ in range(count)]
    try:
        time.sleep(0.5 if burners else 0.0)
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def make_contestants(workload: str, seeds: int, seconds: float) -> dict[str, Contestant]:
    """Ours with all cores as devices, and PyTorch where it is installed, compiled and warm."""
    cores = cores_of_process()
    common: dict[str, Any] = {
        **WORKLOADS[workload],
        **{"classes": CLASSES, "precision": "float32", "frozen": False, "platform": "cpu"},
    }
    ours = {"seeds": seeds, "devices": min(cores, seeds), "strategy": "auto", "form": "auto", "steps": 1000}
    made = {"jaxseg": Contestant("benchmarks.jaxseg_step", common | ours | {"sample_seconds": seconds}, 600)}
    made["jaxseg"].start()
    if importlib.util.find_spec("torch"):
        theirs = {"seeds": 1, "strategy": "eager", "threads": cores, "channels_last": False, "steps": 20}
        made["torch"] = Contestant("benchmarks.torch_step", common | theirs, 600)
        made["torch"].start()
    return made


def main() -> None:
    """Measures, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", default="unet3d_32", choices=sorted(WORKLOADS))
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--burners", default="0,1,2", help="numbers of busy processes; 0 is measured in any case")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sample_seconds", type=float, default=1.0, help="of one seed, in our samples")
    parser.add_argument("--elsewhere", action="store_true", help="burners in sessions of their own")
    asked = parser.parse_args()
    counts = sorted({0, *map(int, asked.burners.split(","))})
    contestants = make_contestants(asked.workload, asked.seeds, asked.sample_seconds)
    for _ in range(asked.rounds):
        for count in counts:
            with burning(count, elsewhere=asked.elsewhere):
                for contestant in contestants.values():
                    contestant.sample()
    cores, rounds = cores_of_process(), range(asked.rounds)
    where = "elsewhere" if asked.elsewhere else "in our session"
    titles = ["framework", f"burners {where}", "ms a seed-step", "fastest to slowest", "share of quiet speed", "fair"]
    lines = [f"| {' | '.join(titles)} |", f"|{' --- |' * len(titles)}"]
    for framework, contestant in contestants.items():
        contestant.close()
        seconds = [sample["seconds"] for sample in contestant.samples]
        by_count = {count: [seconds[i * len(counts) + at] for i in rounds] for at, count in enumerate(counts)}
        for count, found in by_count.items():
            share = statistics.median(quiet / busy for quiet, busy in zip(by_count[0], found, strict=True))
            spread = f"{1000 * min(found):.1f} to {1000 * max(found):.1f}"
            fair = min(1.0, cores / (cores + count))
            cells = [framework, f"{count}", f"{1000 * statistics.median(found):.1f}", spread]
            lines.append(f"| {' | '.join([*cells, f'{share:.2f}', f'{fair:.2f}'])} |")
    terminal.say("\n".join(lines))


if __name__ == "__main__":
    main()
