"""Makes filters.csv, filter_controls.csv and coherence.csv: how filters moved, and whether they still look random."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxseg.analysis import filters, movement
from jaxseg.study.plan.tasks import spread
from jaxseg.study.probe.networks import Networks

CONTROL_LAYERS = 4
"""The most encoder layers that are given controls, evenly spread."""
CONTROL_DRAWS = 10
"""Number of draws of a control at each share; a control counts as found if 8 of them are."""
COHERENT_PAIRS = 32
"""The most pairs of runs of an arm, evenly spread, whose movements are compared."""
NULL_DRAWS = 19
"""Draws of fresh weights. A test that exceeds all of them has found something; by chance 1 in 20 does."""


Draws = Callable[..., np.random.Generator]
"""Makes the generator of what the words given say; see `probes.rng_for`."""


def filter_rows(networks: Networks, draws: Draws) -> list[dict[str, Any]]:
    """Makes one row per run and layer.

    What is drawn for a run depends on no other run, so that its row stays what it was where a study gets more seeds.

    Args:
        networks: The networks of an arm.
        draws: Makes the generators of null distributions, and of the order of weights within filters.
    """
    rows, wave = [], np.array(networks.waves) if networks.waves else None
    adaptive = networks.program.optim.name in ("adam", "adamw")  # whose steps have the size of the rate
    for layer, (start, end, trained) in networks.layers().items():
        null = filters.null_change(int(np.prod(start.shape[1:-1])))
        drawn = filters.distribution_null(start[0].size, draws("null", layer))
        origin = _origins(start)
        auc = filters.start_end_auc(start, end, origin, wave)
        auc_permuted = movement.permuted_auc(end, draws("permuted", networks.step, layer), origin, wave)
        own = networks.relative_rates(layer)
        walks = [movement.walk_length(rates * own) if trained else 0.0 for rates in networks.rates]
        taps = int(np.prod(start.shape[1:-2]))
        for run, seed in enumerate(networks.seeds):
            rng = draws(seed, networks.step, layer)
            moved = filters.change(start[run], end[run])
            angle = _quartiles(moved.angle_deg)
            before, after = (filters.moran(kernel[run], rng) for kernel in (start, end))
            ends = (("start", start[run]), ("end", end[run]))
            rows.append(
                {
                    **{"arm": networks.arm, "seed": seed, "layer": layer, "step": networks.step},
                    **{"taps": taps, "channels": start.shape[-2], "filters": start.shape[-1], "trained": trained},
                    **{"angle_deg": angle[1], "angle_q25": angle[0], "angle_q75": angle[2]},
                    **{"angle_of_null": null.angle_deg, "angle_null_sd": null.angle_sd_deg},
                    "angle_noise_deg": movement.walk_angle(start[run], walks[run]) if adaptive else np.nan,
                    "relative_change": _quartiles(moved.relative_change)[1],
                    "relative_change_of_null": null.relative_change,
                    "norm_ratio": _quartiles(moved.norm_ratio)[1],
                    **{f"distribution_{at}": filters.distribution_excess(kernel, drawn) for at, kernel in ends},
                    **{"moran_start": before.value, "moran_end": after.value},
                    **{"moran_expected": after.expected, "moran_p": after.p},
                    **{f"centre_{at}": filters.centre_share(kernel) for at, kernel in ends},
                    "centre_of_null": 1 / taps if taps > 1 else np.nan,
                    **{f"spectral_{at}": filters.spectral_excess(kernel, rng) for at, kernel in ends},
                    "auc": auc[run],
                    "auc_permuted": auc_permuted[run],
                }
            )
    return rows


def _origins(start: np.ndarray) -> Int[np.ndarray, " runs"]:
    """A number for each run: the same for runs whose kernels at the start are equal to the bit."""
    known: dict[bytes, int] = {}
    return np.array([known.setdefault(kernel.tobytes(), len(known)) for kernel in start])


def coherence_rows(networks: Networks) -> list[dict[str, Any]]:
    """Tests whether two runs with a shared start and different data orders move a layer's filters the same way.

    A start is shared if the kernels of a layer are equal to the bit: with `vary = 'order'`, with crossed ids
    and with several runs per source network. Layers that are not trained have no rows, and studies without such pairs
    none at all.
    """
    rows = []
    for layer, (start, end, trained) in networks.layers().items():
        origin = _origins(start)
        pairs = [
            (a, b)
            for a, b in itertools.combinations(range(len(start)), 2)
            if origin[a] == origin[b] and networks.order_ids[a] != networks.order_ids[b]
        ]
        every = max(-(-len(pairs) // COHERENT_PAIRS), 1)
        for a, b in sorted(pairs)[::every] if trained else ():
            rows.append(
                {
                    **{"arm": networks.arm, "layer": layer},
                    **{"seed_a": networks.seeds[a], "seed_b": networks.seeds[b]},
                    "cosine": movement.coherence(start[a], end[a], end[b]),
                }
            )
    return rows


def _quartiles(values: np.ndarray) -> np.ndarray:
    known = values[~np.isnan(values)]
    return np.quantile(known, (0.25, 0.5, 0.75)) if len(known) else np.full(3, np.nan)


def control_rows(networks: Networks, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Finds, for some encoder layers and each test, how much structure the starts need before the test finds it.

    A test that does not find its control would not have found structure in trained filters either. A test finds
    structure if it exceeds what `NULL_DRAWS` fresh draws of the layer's weights give.
    """
    rows = []
    kernels = networks.layers()
    for layer in spread([layer for layer in kernels if layer.startswith("encoder")], CONTROL_LAYERS):
        # The classifier learns from several starts; one that several runs share is one.
        start = kernels[layer][0]
        start = np.asarray(start[np.unique(_origins(start), return_index=True)[1]], np.float64)
        for quantity, statistic in _statistics(start, rng).items():
            # Only the classifier looks at several runs together: the one of `auc_permuted`.
            kernel = start if quantity == "auc" else start[0]
            fresh = [statistic(filters.truncated_normal(rng, kernel.shape)) for _ in range(NULL_DRAWS)]
            share = filters.smallest_share(
                functools.partial(_exceeds, statistic, max(fresh)),
                kernel,
                _of_runs(filters.CONTROLS[quantity]) if quantity == "auc" else filters.CONTROLS[quantity],
                rng,
                draws=CONTROL_DRAWS,
            )
            rows.append({"arm": networks.arm, "layer": layer, "quantity": quantity, "smallest_share": share})
    return rows


Statistic = Callable[[np.ndarray], float]


def _exceeds(statistic: Statistic, ceiling: float, kernel: np.ndarray) -> bool:
    return statistic(kernel) > ceiling


def _of_runs(control: Callable[..., np.ndarray]) -> Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]:
    """A control drawn for each run by itself."""
    return lambda rng, shape: np.stack([control(rng, shape[1:]) for _ in range(shape[0])])


def _statistics(start: np.ndarray, rng: np.random.Generator) -> dict[str, Statistic]:
    """What each test measures of a kernel (the classifier of a stack of them); tests that say nothing are left out."""
    found: dict[str, Statistic] = {
        "distribution": lambda kernel: filters.distribution_excess(kernel, 0.0),
        "spectrum": lambda kernel: filters.spectral_excess(kernel, rng, draws=5),
    }
    if np.prod(start.shape[1:-2]) > 1:
        found["arrangement"] = lambda kernel: abs(
            (moran := filters.moran(kernel, rng, permutations=1)).value - moran.expected
        )
        if len(start) > 1:
            found["auc"] = lambda kernels: float(movement.permuted_auc(kernels, rng).mean())
    return found
