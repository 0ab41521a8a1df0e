"""The counts of `tools.structure`, on a package small enough to count by hand."""

from __future__ import annotations

from pathlib import Path

from tests.programs import run

FILES = {
    "jaxseg/__init__.py": "",
    "jaxseg/low.py": "",
    "jaxseg/study/__init__.py": "from jaxseg.study import run\n",
    "jaxseg/study/run.py": "import jaxseg.low\nfrom jaxseg.study.plan import jobs, tasks\nfrom .score import stage\n",
    "jaxseg/study/plan/__init__.py": "",
    "jaxseg/study/plan/jobs.py": "from jaxseg.study.plan.tasks import task\n",
    "jaxseg/study/plan/tasks.py": "def task():\n" + "    pass\n" * 60,
    "jaxseg/study/score/__init__.py": "",
    "jaxseg/study/score/stage.py": "import jaxseg.study.plan.jobs\n",
    "docs/page.md": "three short words\n",
}


def test_a_small_package_is_counted(tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / "one" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "one" / name).write_text(text)
    rows = [line.strip("| ").split(" | ") for line in run("tools.structure", tmp_path / "one").splitlines()]
    found = {row[0]: row[1] for row in rows[2:]}
    assert rows[0] == ["counted", "one"]
    assert (found["jaxseg: files"], found["jaxseg: lines"], found["docs: words in pages"]) == ("9", "67", "3")
    assert found["jaxseg: functions over 60 lines"] == "1"
    # run -> jobs, tasks, stage; stage -> jobs; jobs -> tasks. Rooms: run -> plan, score; score -> plan.
    assert found["jaxseg.study: modules; arrows; floors"] == "6; 5; 4"
    assert found["jaxseg.study: rooms; arrows; floors"] == "3; 3; 3"
    assert found["jaxseg: largest fan-out"] == "4 (study.run)"
