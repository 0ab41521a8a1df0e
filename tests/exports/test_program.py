"""The program of a network: weights in it, any number of windows, three platforms."""

from __future__ import annotations

import jax
import numpy as np

from jaxseg import inference
from jaxseg.exports import program
from tests.networks import draw_params, image_of, native, settings_of, shapes_of


def test_a_program_gives_the_probabilities_of_its_network() -> None:
    settings = settings_of("unet", widths=(2, 4), norm="group", groups=2)
    model = native(settings)
    params = draw_params(shapes_of(settings, (4, 8), channels=2))
    content = bytes(program.window_program(model, params, patch=(4, 8), channels=2).serialize())
    loaded = program.load(content)
    assert set(loaded.platforms) == {"cpu", "cuda", "tpu"}
    predict = inference.make_window_predict(model)
    windows = image_of(4, 8, batch=3, channels=2)
    expected = np.asarray(jax.jit(predict)(params, {}, windows))
    for count in (1, 3):
        np.testing.assert_allclose(np.asarray(loaded.call(windows[:count])), expected[:count], atol=1e-5)
