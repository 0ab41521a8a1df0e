"""A contestant that answers every line after some seconds, with the number of the line as its time."""

from __future__ import annotations

import json
import sys
import time


def tell(answer: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main() -> None:
    seconds = json.loads(sys.argv[1])["seconds"]
    tell({"ready": True})
    for number, _ in enumerate(sys.stdin):
        time.sleep(seconds)
        tell({"seconds": float(number), "peak_bytes": 0})


if __name__ == "__main__":
    main()
