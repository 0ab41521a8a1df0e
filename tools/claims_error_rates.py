"""How often each claim is supported when it is false, and found when it is true, in simulated studies.

    python -m tools.claims_error_rates [--draws 400] [--seed 0] [--claims C1,C9]

Prints two Markdown tables: verdicts by setting, then how often intervals cover the truth and equals are told apart.
Settings in which a claim is false are drawn so often, the others a quarter of it. What is drawn stands in
simulated/settings.py, designs.py and tables.py; the verdicts are those that the study's own code
gives to the tables.
"""

from __future__ import annotations

import argparse

from jaxseg.study.claims.findings import CONTRADICTED, SUPPORTED
from simulated.designs import SETTINGS, SHARES, share, verdicts
from simulated.settings import FALSE

OF_DESIGNS = "designs"
"""What stands for the second table among the claims."""


def main() -> None:
    """Prints one row a setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=400, help="studies of a setting; a quarter where claims are true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--claims", default="", help=f"some of the claims, by commas; {OF_DESIGNS}: the second table")
    options = parser.parse_args()
    everything = {setting.claim for setting in SETTINGS} | {OF_DESIGNS}
    wanted = set(options.claims.split(",")) if options.claims else everything
    print("| claim | truth | is | studies | supported, % | contradicted, % |\n| --- | --- | --- | --- | --- | --- |")
    for setting in SETTINGS:
        if setting.claim in wanted:
            draws = options.draws if setting.truth == FALSE else options.draws // 4
            found = verdicts(setting, draws, options.seed)
            shares = [f"{100 * found.count(v) / len(found):.1f}" for v in (SUPPORTED, CONTRADICTED)]
            cells = (setting.claim, setting.name, setting.truth, str(draws), *shares)
            print(f"| {' | '.join(cells)} |", flush=True)
    if OF_DESIGNS in wanted:
        print("\n| what happens | studies | share, % | should be, % |\n| --- | --- | --- | --- |")
        for one in SHARES:
            found_share = share(one, options.draws, options.seed)
            limits = f"{100 * one.low:g} to {100 * one.high:g}"
            print(f"| {one.name} | {options.draws} | {100 * found_share:.1f} | {limits} |", flush=True)


if __name__ == "__main__":
    main()
