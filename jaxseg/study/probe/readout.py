"""Makes probes.csv: what a linear classifier reads off each layer, at the start and at the end of training."""

from __future__ import annotations

from typing import Any

from jaxseg.analysis import linear_probe
from jaxseg.study.probe.probes import Probes
from jaxseg.study.probe.representations import Represented


def probe_rows(arm: Represented, probes: Probes) -> list[dict[str, Any]]:
    """Scores probes that are fitted to some of the shown cases and tested on the others, by run, layer and site.

    The site `source` is the source network that a run started from, `start` any other start. All positions count, also
    those that a coarse layer reads at one site: their labels may differ, which no probe of that layer can tell.
    """
    networks = arm.networks
    case, label = probes.points()
    before = "source" if networks.pretrained else "start"
    return [
        {
            **{"arm": networks.arm, "seed": seed, "layer": layer, "site": site},
            **{"score": linear_probe.probe_score(values[run], label, case), "n_points": len(label)},
        }
        for layer, features in arm.layers.items()
        for run, seed in enumerate(networks.seeds)
        for site, values in ((before, features.start), ("end", features.end))
    ]
