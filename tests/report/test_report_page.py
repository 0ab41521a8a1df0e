"""The page stands alone, escapes every name, and says what is missing."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from markupsafe import Markup
from matplotlib.figure import Figure

from jaxseg.report import write_report
from jaxseg.report.blocks import Block, Cell, Chart, Section, Table, TableGroup
from jaxseg.report.charts.style import WIDE_INCHES
from jaxseg.report.page import MANIFEST, write_page
from jaxseg.text import limit, ratio, signed, significant
from tests.report.tables_builder import NASTY, write_claims, write_shown, write_workdir

VOID = {"meta", "link", "wbr", "br", "hr", "img"}
ARMS = (
    *("scratch", "transfer", "frozen_random_encoder", "frozen_pretrained_encoder", "transfer_encoder", "mean_var"),
    *("first_2", "no_skip_transfer", "head_only", "scratch_b", "pooled_encoder", "shuffled_source"),
)


class Page(html.parser.HTMLParser):
    """What a page consists of; an element that is not closed in its place is an error."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        """All words, spaces between elements kept to one."""
        return " ".join("".join(self.words).split())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = write_workdir(tmp_path_factory.mktemp("plain"), sizes=(8, 0), diverged=True)
    write_claims(workdir)
    write_report(workdir)
    return workdir


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = write_workdir(
        tmp_path_factory.mktemp("nasty"),
        arms=NASTY,
        labels=("<i>lv</i>", '$\\alpha$ & "myo"', "nan"),
        case_name="<img src=x onerror=alert({})>",
        name="</title><script>alert(1)</script> \u202eevil\x00",
        seeds=2,
        folds=2,
    )
    write_report(workdir)
    return workdir


def sketch(chart: Chart, folder: Path) -> Markup:
    """Draws a chart, but neither renders nor writes it, which takes longer."""
    chart.draw(width=WIDE_INCHES)
    return Markup("")


@pytest.fixture
def sketched(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what a page says in words."""
    monkeypatch.setattr("jaxseg.report.page._draw", sketch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small study that lacks no table, with the words of its page."""
    workdir = write_workdir(tmp_path_factory.mktemp("whole") / "study", seeds=2, examples=1, n_cases=4, steps=120)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxseg.report.page._draw", sketch)
        write_report(workdir)
    return workdir


def _page(workdir: Path) -> Page:
    return Page((workdir / "report.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize("study", ["plain", "nasty"])
def test_page_needs_no_script_and_no_network(study: str, request: pytest.FixtureRequest):
    page = _page(request.getfixturevalue(study))
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "iframe", "object", "embed", "form", "base", "i", "foreignobject"}
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("href", "xlink:href", "src", "srcset", "action"):
            target = attributes.get(name)
            assert target is None or target.startswith(("#", "data:image/png;base64,", "data:,")), (tag, target)
        assert "url(http" not in (attributes.get("style") or "")
    (policy,) = (a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    text = (request.getfixturevalue(study) / "report.html").read_text(encoding="utf-8")
    style = text.split("<style>")[1].split("</style>")[0]
    assert "@import" not in style
    assert "url(" not in style
    assert len(text.encode()) < 8e6


@pytest.mark.parametrize("study", ["plain", "nasty"])
def test_ids_are_unique_and_links_lead_somewhere(study: str, request: pytest.FixtureRequest):
    page = _page(request.getfixturevalue(study))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {str(a.get("href") or a.get("xlink:href"))[1:] for t, a in page.elements if t in ("a", "use")}
    assert links <= set(ids)


def test_every_figure_is_described_for_those_who_cannot_see_it(plain: Path):
    page = _page(plain)
    charts = [a for tag, a in page.elements if tag == "svg" and a.get("class") == "chart"]
    assert charts
    assert all(chart["role"] == "img" and len(chart["aria-label"] or "") > 20 for chart in charts)
    assert all("aria-hidden" in a for tag, a in page.elements if tag == "svg" and a.get("class") != "chart")
    headers = [a for tag, a in page.elements if tag == "th"]
    assert headers
    assert all("scope" in a for a in headers)


def test_names_from_data_are_shown_and_never_run(nasty: Path):
    page = _page(nasty)
    assert "</title><script>alert(1)</script> evil\ufffd" in page.text
    for name in (*NASTY, "<i>lv</i>", '$\\alpha$ & "myo"', "<b><img src=x onerror=alert(99)></b>", "</pre><b>bold</b>"):
        assert name in page.text
    raw = (nasty / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"<script|<img|<i>|\u202e|\x00", raw)


@pytest.mark.parametrize("study", ["plain", "nasty"])
def test_every_figure_of_the_page_lies_beside_it_as_svg_and_png(study: str, request: pytest.FixtureRequest):
    workdir = request.getfixturevalue(study)
    names = {str(a["id"]).removeprefix("figure-") for tag, a in _page(workdir).elements if tag == "figure"}
    assert {path.stem for path in (workdir / "figures").glob("*.svg")} == names
    assert {path.stem for path in (workdir / "figures").glob("*.png")} == names
    shown = [path for path in (workdir / "figures").iterdir() if not path.name.startswith(".")]
    assert {path.suffix for path in shown} == {".svg", ".png"}  # numbers stand in results/
    for path in (workdir / "figures").glob("*.svg"):
        root = ET.fromstring(path.read_bytes())
        assert not [e for e in root.iter() if e.tag.endswith("script")]


def test_the_same_tables_give_the_same_page(plain: Path, tmp_path: Path):
    again = shutil.copytree(plain, tmp_path / "again")
    shutil.rmtree(again / "figures")
    assert write_report(again).read_bytes() == (plain / "report.html").read_bytes()


def test_the_answer_states_the_numbers_of_the_tables(plain: Path):
    page = _page(plain).text
    row = pd.read_csv(plain / "results" / "claims.csv").query("role == 'answer'").iloc[0]
    assert f"{signed(row['value'])} DSC" in page
    assert f"95 % interval {limit(row['ci_low'])} to {limit(row['ci_high'])}" in page
    assert "transfer against scratch" in page
    claims = pd.read_csv(plain / "results" / "claims.csv").set_index("role")
    (answer,) = claims.loc[["answer"], "reason"].unique()  # one answer, in a row for each of its numbers
    assert answer in page
    assert "scratch's steps over transfer's, to 90 %, 95 % and 98 % of scratch's level" in page
    assert "the same, pretraining counted" in page
    assert "4 seeds: too few for a verdict." in page
    assert "1 run diverged (frozen_random_encoder seed 3)." in page
    assert "left out of means and tests" in page


def test_enough_seeds_earn_no_warning_and_the_answer_is_about_the_pretrained_arm(tmp_path: Path):
    arms = ("scratch", "slow_pretrained")
    workdir = write_workdir(tmp_path, arms=arms, seeds=8, examples=0)
    study = json.loads((workdir / "study.json").read_text())
    study["arms"]["slow_pretrained"]["init"] = "pretrained"
    for run in study["runs"][8:16]:
        run["source"] = {"arm": "source", "train_cases": 0, "fold": 0, "seed": run["seed"]}
    (workdir / "study.json").write_text(json.dumps(study))
    write_claims(workdir)
    write_report(workdir)
    page = _page(workdir).text
    assert "too few" not in page
    assert "slow_pretrained on tubes & blobs, 8 training cases, 8 seeds:" in page
    told = pd.read_csv(workdir / "results" / "claims.csv").query("role == 'answer'").set_index("key")["value"]
    to_levels = "over slow_pretrained's, to 90 %, 95 % and 98 % of scratch's level"
    for meaning, key in ((to_levels, "ratio"), ("the same, pretraining counted", "total")):
        assert re.search(f"{meaning} *{ratio(told[key])}\N{MULTIPLICATION SIGN}", page)


def test_a_study_with_looks_has_one_speed_of_the_seeds_and_the_level_of_its_look(tmp_path: Path):
    workdir = write_workdir(tmp_path, arms=("scratch", "transfer"), seeds=12, examples=0)
    study = json.loads((workdir / "study.json").read_text())
    (workdir / "study.json").write_text(json.dumps(study | {"looks": [8, 16]}))
    write_report(write_claims(write_shown(workdir)))
    page = " ".join(_page(workdir).text.split())
    table = pd.read_csv(workdir / "results" / "claims.csv")
    judged, answer = (table[table["role"] == role].set_index("key") for role in ("claim", "answer"))
    speed = pd.read_csv(workdir / "results" / "speed.csv").set_index("arm").loc["transfer"]
    row = answer.loc["ratio"]
    assert (row["n_seeds"], row["confidence"]) == (8, pytest.approx(0.9946))
    limits = ["ci_low", "ci_high", "confidence"]
    assert row[["value", *limits]].tolist() == judged.loc["ratio", ["value", *limits]].tolist()
    assert row[["value", *limits]].tolist() == pytest.approx(speed[["ratio", *limits]].tolist())
    for key in ("ratio", "total"):
        low, high = (significant(answer.loc[key, name]) for name in limits[:2])
        assert f"{ratio(answer.loc[key, 'value'])}\N{MULTIPLICATION SIGN}99.46 % interval {low} to {high}" in page
    assert "95 % interval " not in page.partition("Which claims of the paper")[0]


def _drop(*names: str) -> Callable[[Path], None]:
    def remove(workdir: Path) -> None:
        for name in names:
            path = workdir / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


@pytest.mark.parametrize(
    ("name", "sentence", "gone"),
    [
        ("results/worst_cases.csv", "the list of worst cases is left out", "The structures segmented worst"),
        ("results/curve_runs.csv", "learning curves are left out", "Learning curves, trained on"),
        ("results/convergence.csv", "steps to the target are left out", "First step at which"),
        ("results/comparisons.csv", "paired differences between arms are left out", "Paired differences in DSC"),
        ("results/summary.csv", "scores of the arms are left out", "DSC by label"),
        ("results/examples.npz", "example slices are left out", "White: reference"),
        ("load_tables", "There are no load tables", "re-initialised"),
        ("config.json", "the configuration is left out", "The whole configuration"),
    ],
)
def test_a_missing_table_leaves_a_sentence(
    sketched: None, whole: Path, tmp_path: Path, name: str, sentence: str, gone: str
):
    assert sentence not in _page(whole).text
    assert gone in _page(whole).text
    workdir = tmp_path / "study"
    shutil.copytree(whole, workdir)
    _drop(name)(workdir)
    write_report(workdir)
    page = _page(workdir).text
    assert sentence in page
    assert gone not in page


def test_a_placebo_of_other_seeds_does_not_make_them_more(sketched: None, tmp_path: Path):
    workdir = write_workdir(tmp_path, seeds=4, examples=1)
    record = json.loads((workdir / "study.json").read_text())
    for run in record["runs"]:
        run["seed"] += 1000 * (run["arm"] == "frozen_random_encoder")
    trial = next(run for run in record["runs"] if run["arm"] == "scratch")
    record["runs"].append(trial | {"kind": "select", "seed": 9001, "diverged_at": 3})
    (workdir / "study.json").write_text(json.dumps(record))
    page = Page(write_report(workdir).read_text(encoding="utf-8")).text
    assert "3 arms, 4 seeds each" in page
    assert "4 seeds: too few for a verdict." in page
    assert "a trial of rates: not scored" in page
    record["runs"] = [run for run in record["runs"] if (run["arm"], run["seed"]) != ("transfer", 3)]
    (workdir / "study.json").write_text(json.dumps(record))
    assert "3 arms, 3 to 4 seeds each" in Page(write_report(workdir).read_text(encoding="utf-8")).text


def test_figures_of_training_set_sizes_show_arms_that_have_several(plain: Path, tmp_path: Path):
    workdir = tmp_path / "study"
    shutil.copytree(plain / "results", workdir / "results")
    shutil.copy(plain / "study.json", workdir)
    for name, column in (("summary", "arm"), ("comparisons", "arm_a")):
        table = pd.read_csv(workdir / "results" / f"{name}.csv")
        kept = (table[column] != "frozen_random_encoder") | (table["train_cases"] == 0)
        table[kept].to_csv(workdir / "results" / f"{name}.csv", index=False)
    write_report(workdir)
    drawn = {tag: _labels_of_charts(folder) for tag, folder in (("all", plain), ("one size", workdir))}
    for title in ("DSC by number of training cases", "Difference in DSC by number of training cases"):
        assert "frozen_random_encoder" in drawn["all"][title]
        assert "frozen_random_encoder" not in drawn["one size"][title]
        assert "transfer" in drawn["one size"][title]


def _labels_of_charts(workdir: Path) -> dict[str, str]:
    charts = [a["aria-label"] or "" for tag, a in _page(workdir).elements if tag == "svg" and a.get("class") == "chart"]
    return {label.split(":")[0]: label for label in charts}


def test_study_json_alone_makes_a_page(sketched: None, tmp_path: Path):
    workdir = write_workdir(tmp_path, seeds=1, examples=1)
    _drop("results", "load_tables", "config.json")(workdir)
    bare = {"name": "bare", "arms": {}, "runs": [], "source": None}
    target = json.loads((workdir / "study.json").read_text())["target"]
    (workdir / "study.json").write_text(json.dumps(bare | {"target": target}))
    assert "there is no result to state yet" in Page(write_report(workdir).read_text(encoding="utf-8")).text


def test_one_arm_and_one_seed_make_a_page(tmp_path: Path):
    workdir = write_workdir(tmp_path, arms=("scratch",), seeds=1, labels=("tumour",), examples=1)
    write_report(workdir)
    page = _page(workdir).text
    assert "so nothing is compared with it" in page
    assert "1 seed: too few for a verdict." in page
    assert "nan" not in page.lower()


def test_undefined_numbers_become_dashes(tmp_path: Path):
    workdir = write_workdir(tmp_path, seeds=2, examples=1)
    for name, columns in (
        ("summary", ["mean", "ci_low", "ci_high", "sd"]),
        ("comparisons", ["mean_diff", "ci_low", "ci_high", "p", "p_maxt"]),
        ("curves", ["loss", "val_dsc"]),
        ("convergence", ["target_dsc", "step"]),
        ("cases", ["dsc"]),
    ):
        path = workdir / "results" / f"{name}.csv"
        pd.read_csv(path).assign(**dict.fromkeys(columns, float("nan"))).to_csv(path, index=False)
    write_report(workdir)
    page = _page(workdir).text
    assert "nan" not in page.lower()
    assert "\N{EN DASH}" in page


@pytest.mark.slow
def test_a_page_of_many_arms_and_sizes_stays_light(tmp_path: Path):
    workdir = write_workdir(
        tmp_path, arms=ARMS, sizes=(4, 8, 16, 32), seeds=16, labels=tuple("ABCDEFGH"), steps=1500, n_cases=10
    )
    assert write_report(workdir).stat().st_size < 8e6
    assert _page(workdir)


def test_a_source_called_like_the_target_is_told_apart(sketched: None, tmp_path: Path):
    workdir = write_workdir(tmp_path, seeds=1, examples=0)
    study = json.loads((workdir / "study.json").read_text())
    study["source"]["name"] = study["target"]["name"] = "blobs"
    (workdir / "study.json").write_text(json.dumps(study))
    config = {"source": {"data": "synthetic:blobs?seed=1"}, "target": {"data": "synthetic:blobs"}}
    (workdir / "config.json").write_text(json.dumps(config))
    write_report(workdir)
    page = _page(workdir).text
    assert "pretrained on another blobs help to segment blobs?" in page
    assert "blobs from synthetic:blobs?seed=1; labels" in page
    (workdir / "config.json").write_text(json.dumps({"source": {"data": "x"}, "target": {"data": "x"}}))
    write_report(workdir)
    assert "pretrained on blobs itself help" in _page(workdir).text


def test_figures_of_an_earlier_page_go_and_others_stay(tmp_path: Path):
    def table(stem: str) -> Table:
        return Table(stem, ("Arm",), (TableGroup("", ((Cell("a"),),)),), stem=stem, data=pd.DataFrame({"arm": ["a"]}))

    def chart(stem: str) -> Chart:
        return Chart(stem, lambda *, width: Figure(figsize=(width, 1)), "nothing", "nothing")

    def report(*blocks: Block) -> set[str]:
        section = Section("one", "One", blocks)
        write_page(tmp_path, name="study", kind="study", lead="", sections=[section])
        return {path.name for path in (tmp_path / "figures").glob("[!.]*")}

    (tmp_path / "figures").mkdir()
    others = {"contact_target.png", "mine.svg"}
    for name in others:
        (tmp_path / "figures" / name).touch()
    assert report(chart("kept"), chart("gone"), table("numbers")) == {
        *others, "kept.svg", "kept.png", "gone.svg", "gone.png", "numbers.csv",
    }  # fmt: skip
    (tmp_path / "figures" / "gone.txt").touch()
    assert report(chart("kept")) == {*others, "kept.svg", "kept.png", "gone.txt"}
    # Without its list nothing is known to be the page's.
    (tmp_path / "figures" / MANIFEST).unlink()
    assert report() == {*others, "kept.svg", "kept.png", "gone.txt"}
