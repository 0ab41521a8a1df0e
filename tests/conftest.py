"""Set-up shared by all tests: four CPU devices, strict ranks, cached programs, the real data when it is there."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import jax
import pytest

from jaxseg import machine

ROOT = Path(__file__).parent.parent

# Before anything touches a device.
# XLA's newer code generator for CPUs makes programs that run a fifth faster and take up to twice as long to compile,
# and a seventh of what is left goes to optimizing; here programs run for moments. A version that no longer knew a flag
# would end at it. `XLA_FLAGS= pytest` tests with the programs that studies use.
if jax.__version_info__[:2] <= (0, 10):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=1")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Compiling dominates the time of the tests; programs are kept between runs.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
machine.one_blas_thread()

LONGEST_FIRST = ("browser", "study", "buckets", "launch", "report", ".", "models")
"""Folders of tests with files that take up to a minute: none is left to one worker when the other is done."""


NOT_BY_DEFAULT = "not slow and not slurm and not hosts"
"""What is left out unless `-m` says otherwise."""
LONG = {
    ".": (
        "accuracy_benchmark averaging checkpoint config_files docs_commands docs_snippets draw_claims "
        "draw_study fine_tuning loop paths regions restoration seeds streams study_pages transfer "
        "validation verification workdirs"
    ),
    "analysis": "alignment case_similarity similarity",
    "browser": "page_in_browser",
    "buckets": "commands emulated lease reading",
    "data": "augment residence",
    "launch": (
        "benchmark distributed export_command live_page mishaps mistakes planning predict_command "
        "predict_formats predict_scores recipes sweep_jobs sweeps_at_once terminal track verdicts"
    ),
    "models": "conv joined networks",
    "report": "page_numbers report_analyses report_page report_rates",
    "study": (
        "ahead analyses arms binding claims claims_reasons clock compilations cost data_options ensembles "
        "extended external faults folder given_networks imported_networks jobs live lowered mirror needs "
        "nested_analyses notebook objectives over_targets pooled_source predict proposal published record "
        "region_study run score_stage shown_tables tasks"
    ),
}
"""Files by folder, without `test_` and `.py`, that take more than 15 s with an empty compilation cache, or need the
finished study, which takes as long: whole studies, commands, pages, and much to compile. They are marked `long`."""


def pytest_configure(config: pytest.Config) -> None:
    """Leaves long files to `-m long`, or to one who names them or their folder."""
    if not config.option.markexpr:
        everywhere = config.args_source is config.ArgsSource.TESTPATHS
        config.option.markexpr = NOT_BY_DEFAULT + (" and not long" if everywhere else "")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks long files and puts the folders that have some first; workers take files in the order of the tests."""
    places = {ROOT / "tests" / folder: place for place, folder in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.parent, len(places)))
    long = {ROOT / "tests" / folder / f"test_{name}.py" for folder, names in LONG.items() for name in names.split()}
    for item in items:
        if item.path in long:
            item.add_marker("long")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real labelled image sets; in CI it must be there."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"in CI the real image sets must be in {folder}")
        pytest.skip("the real image sets are not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def tiny_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a finished tiny study with its report; tests must not change it."""
    from jaxseg.report import write_report
    from jaxseg.study.run import STAGES, run_stages
    from tests.tiny_study import silent, tiny_config

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # that of all workers: the first makes it, the others wait
    with (folder / "tiny.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        workdir = folder / "tiny" / "study"
        if not (workdir / "report.html").exists():
            run_stages(tiny_config(), workdir, stages=STAGES, progress=silent)
            write_report(workdir)
    return workdir
