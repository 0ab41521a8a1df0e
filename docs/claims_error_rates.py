"""How often each claim is supported when it is false, and found when it is true, in simulated studies of 8 seeds.

    python -m docs.claims_error_rates [--draws 1000] [--seed 0] [--claims C1,C9]

Prints a Markdown table. What is drawn stands in tests/study/claim_settings.py and tests/study/simulated.py; the
verdicts are those that the study's own code gives to the tables.
"""

from __future__ import annotations

import argparse

from jaxseg.study.claims.findings import CONTRADICTED, SUPPORTED
from tests.study.claim_settings import SETTINGS, verdicts


def main() -> None:
    """Prints one row a setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000, help="simulated studies of each setting")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--claims", default="", help="some of the claims, by commas")
    options = parser.parse_args()
    wanted = set(options.claims.split(",")) if options.claims else {setting.claim for setting in SETTINGS}
    print("| claim | truth | is | supported, % | contradicted, % |\n| --- | --- | --- | --- | --- |")  # noqa: T201
    for setting in SETTINGS:
        if setting.claim in wanted:
            found = verdicts(setting, options.draws, options.seed)
            shares = [f"{100 * found.count(v) / len(found):.1f}" for v in (SUPPORTED, CONTRADICTED)]
            print(f"| {setting.claim} | {setting.name} | {setting.truth} | {' | '.join(shares)} |", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
