"""The rates that analyses take for those of every step are the ones that runs were trained with."""

from types import SimpleNamespace

import jax
import numpy as np

from jaxseg import logs, optim, settings
from jaxseg.study.probe.networks import step_rates
from tests.tiny_study import tiny_config

STEPS, EVERY = 50, 10
DSC = np.array([[0.6, 0.1, 0.2], [0.5, 0.5, 0.2], [0.52, 0.4, 0.1], [0.51, 0.5, np.nan], [0.6, 0.49, 0.1], [0.7] * 3])
"""Validation DSC of three runs: at the start, where a transferred run is better than after ten steps, and later."""


def test_a_plateau_begins_with_the_first_validation_after_the_start() -> None:
    made = tiny_config()
    made.optim.schedule, made.optim.warmup_steps = "plateau", 0
    chosen = settings.parse(made).optim
    rows = [logs.Row(step * EVERY, None, dsc, np.full(3, EVERY), 1.0) for step, dsc in enumerate(DSC)]
    program = SimpleNamespace(optim=chosen, train=SimpleNamespace(steps=STEPS))
    job = SimpleNamespace(program=program, runs=[SimpleNamespace(rate=rate) for rate in (1.0, 2.0, 1.0)])
    rates = step_rates(job, logs.make_log(rows, 3))
    ten = np.ones(EVERY)
    np.testing.assert_allclose(rates[0], np.concatenate([ten, ten, ten, 0.9 * ten, 0.9 * ten]))
    # As the optimizer holds them: a state for each run, which hears of every validation but that of the start.
    scales, state = [], [optim.ValidationState(np.float32(1), np.float32(0)) for _ in range(3)]
    observe = jax.jit(lambda state, dsc: optim.observe(state, dsc, chosen))
    for dsc in DSC[1:].astype(np.float32):
        scales += [[float(run.rate_scale) for run in state]] * EVERY
        state = [observe(run, value) for run, value in zip(state, dsc, strict=True)]
    np.testing.assert_allclose(rates, np.array(scales).T * [[1.0], [2.0], [1.0]], rtol=1e-6)
