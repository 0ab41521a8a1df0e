"""One 2-D target for the question whether transfer gains more on harder tasks (claim C3), 16 training cases.

    for target in nerve_us lung_tumour_ct nuclei_micro hippocampus_mr cardiac_ed_mr rodent_brain_epi; do
        python -m launch.study --config=configs/difficulty.py:$target,FOLDER --workdir=runs/c3/$target
    done
    for noise in 0.25 0.5 1.0 2.0; do
        python -m launch.study --config=configs/difficulty.py:hippocampus_mr,FOLDER --workdir=runs/c3/noise_$noise \
            --config.target.noise=$noise
    done
    python -m launch.verdicts --studies='runs/c3/*'

TARGET,FOLDER names a set of configs/pairs.py and the folder that it and the source, fetal heads, lie in; volumes are
taken slice by slice. Two CPU cores train one target in about five minutes.
"""

from ml_collections import ConfigDict

from configs import default, pairs

SOURCE = "fetal_head_us"
TRAIN_CASES = 16
"""As many as the smallest set can give to every seed by its own draw, and some are left."""


def get_config(target: str = "hippocampus_mr") -> ConfigDict:
    """The study; `target` is TARGET or TARGET,FOLDER."""
    config = pairs.get_config(f"{SOURCE},{target}")
    config.target.train_cases = (TRAIN_CASES,)
    config.analysis.cases = 0  # the question is about scores alone
    config.train.eval_every = 50  # times to a level are not asked for
    # scratch_b measures the difficulty, on other seeds than those of the gain.
    config.arms = default.pick_arms("scratch", "transfer", "scratch_b", "prior", config=config)
    return config
