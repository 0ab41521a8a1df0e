"""What may import what, and other promises about the shape of the code."""

import ast
import functools

import pytest

from tests.conftest import LONG, ROOT

PACKAGE = ROOT / "jaxseg"

# Every module or package of jaxseg, from the bottom up, and what of jaxseg it may import beside itself. A module may
# import what the rows above it state, never what stands below it: there are no cycles.
BOTTOM = {"types", "trees", "streams", "paths", "oserrors", "reserved", "settings", "regions", "threads"}
MAY_IMPORT = {
    "reserved": set(),
    "regions": set(),
    "text": set(),
    "threads": set(),
    "types": set(),
    "streams": set(),
    "machine": set(),
    "trees": {"types"},
    "workdirs": {"types"},
    "manifest": {"types"},
    "paths": {"types"},
    "settings": {"types", "streams", "paths", "reserved"},
    "oserrors": set(),
    "losses": BOTTOM,
    "metrics": BOTTOM,
    "models": BOTTOM,
    "optim": BOTTOM,
    "transfer": BOTTOM,
    "data": BOTTOM | {"machine", "manifest"},
    "seeds": BOTTOM,
    "hosts": BOTTOM,
    "buckets": BOTTOM | {"workdirs"},
    "stored": BOTTOM | {"manifest"},
    "checkpoint": BOTTOM | {"hosts", "manifest", "stored"},
    "logs": {"checkpoint"},
    "averaging": BOTTOM,
    "train": BOTTOM | {"averaging", "models", "losses", "optim", "transfer"},
    "inference": BOTTOM | {"models"},
    "validation": BOTTOM | {"models", "inference", "losses"},
    "analysis": BOTTOM | {"models", "metrics", "seeds", "inference"},
    "imports": BOTTOM | {"models"},
    "exports": BOTTOM | {"models", "inference", "imports"},
    "loop": BOTTOM | {"train", "seeds", "data", "hosts", "checkpoint", "logs", "averaging"},
}
MAY_IMPORT["study"] = set(MAY_IMPORT)
MAY_IMPORT["report"] = {"reserved", "text", "types", "analysis", "study", "workdirs"}
MAY_IMPORT["__init__"] = set(MAY_IMPORT)

FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(PACKAGE)) for path in FILES]


@functools.cache
def imports(path):
    """Dotted names that a file imports, `from a import b` as `a.b`; relative imports resolved."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = path.relative_to(ROOT).parts[: -node.level]
                base = ".".join((*parent, base)).rstrip(".")
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def relative(path):
    return str(path.relative_to(ROOT))


def unit_of(path):
    """The module or package right below jaxseg."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_module_is_in_the_table():
    assert {unit_of(path) for path in FILES} == set(MAY_IMPORT)


def test_the_table_has_no_cycles():
    above = []
    for unit, allowed in MAY_IMPORT.items():
        assert allowed <= set(above), unit
        above.append(unit)


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_imports_are_those_of_the_table(path):
    unit = unit_of(path)
    used = {name.split(".")[1] for name in imports(path) if name.startswith("jaxseg.")}
    assert "jaxseg" not in imports(path)
    assert used <= MAY_IMPORT[unit] | {unit}


# The rooms inside a package from the bottom up: a room may import those on its own floor and below.
ROOMS = {
    "data": (("names", "digests", "volumes"), ("cases",), ("formats",), ("prepared",), ("splits", "patches")),
    "models": (("layout", "conv"), ("norms",), ("blocks",), ("network",), ("unet", "vnet", "multiscale_fcn", "nnunet")),
    "buckets": (("address", "locks", "snapshot"), ("objects",), ("states",), ("lease",), ("mirror", "reading")),
    "imports": (("kinds",), ("layout", "readers"), ("naming",), ("rules",), ("conversion",)),
    "exports": (("torch_network", "nnunet", "program"), ("state_dict",), ("formats",)),
    "study": (
        ("clock", "files", "outputs", "typed_json", "versions"),
        ("record",),
        ("plan", "predict", "recorded_runs", "restore", "source_folder"),
        ("proposal",),
        ("workdir",),
        ("train",),
        ("recording",),
        ("score",),
        ("probe",),
        ("claims",),
        ("run", "arm", "sweep"),
        ("api",),
        ("export", "live", "mirror"),
    ),
    "report": (("pictures", "charts"), ("tables", "blocks"), ("shown",), ("sections",), ("page",), ("live", "sweep")),
}


@pytest.mark.parametrize("unit", ROOMS)
def test_rooms_import_what_stands_below_them(unit):
    floor = {room: level for level, rooms in enumerate(ROOMS[unit]) for room in rooms}
    found = {path.relative_to(PACKAGE / unit).parts[0].removesuffix(".py") for path in (PACKAGE / unit).rglob("*.py")}
    assert found - {"__init__"} == set(floor)
    for path in (PACKAGE / unit).rglob("*.py"):
        room = path.relative_to(PACKAGE / unit).parts[0].removesuffix(".py")
        used = {name.split(".")[2] for name in imports(path) if name.startswith(f"jaxseg.{unit}.")} & set(floor)
        if room != "__init__":
            assert {name for name in used if floor[name] > floor[room]} == set(), path


def test_no_modules_import_each_other_in_a_circle():
    modules = {".".join(("jaxseg", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in FILES}
    arrows = {
        name: {part for found in imports(path) for part in (found, found.rpartition(".")[0]) if part in modules}
        for name, path in modules.items()
    }
    done: set[str] = set()
    while left := {name for name in modules if name not in done and arrows[name] - {name} <= done}:
        done |= left
    assert set(modules) - done == set()


def test_the_report_takes_definitions_and_computes_nothing():
    allowed = {
        "jaxseg.analysis.statistics",
        "jaxseg.study.clock",
        "jaxseg.study.files",
        "jaxseg.study.record",
        "jaxseg.study.typed_json",
        "jaxseg.study.claims.controls",
        "jaxseg.study.claims.rules",
    }
    for path in sorted((PACKAGE / "report").rglob("*.py")):
        used = {name for name in imports(path) if name.startswith(("jaxseg.study", "jaxseg.analysis"))}
        assert {name for name in used if name not in allowed and name.rpartition(".")[0] not in allowed} == set(), path
    constants = {
        name.rpartition(".")[2]
        for path in (PACKAGE / "report").rglob("*.py")
        for name in imports(path)
        if name.startswith("jaxseg.analysis.statistics.")
    }
    assert constants == {"MIN_SEEDS", "minimum_p"}


# The folders of a clone beside the package, and what of the clone each may import beside itself. Tools, benchmarks and
# tests know each other by their commands alone; `simulated` is there for tests and tools alike.
CLONE = {
    "jaxseg": set(),
    "configs": set(),
    "simulated": {"jaxseg"},
    "benchmarks": {"jaxseg", "configs", "launch"},
    "launch": {"jaxseg", "configs", "benchmarks"},
    "tools": {"jaxseg", "configs", "simulated", "launch"},
    "tests": {"jaxseg", "configs", "simulated", "launch"},
    "docs": {"jaxseg"},
}
PROGRAMS = [path for name in CLONE for path in sorted((ROOT / name).rglob("*.py"))]


@pytest.mark.parametrize("folder", CLONE)
def test_folders_of_the_clone_import_what_is_theirs(folder):
    for path in sorted((ROOT / folder).rglob("*.py")):
        used = {name.split(".")[0] for name in imports(path)} & set(CLONE)
        assert used <= CLONE[folder] | {folder}, path


def test_of_launch_only_the_benchmark_imports_benchmarks():
    users = {path.name for path in (ROOT / "launch").glob("*.py") if any("benchmarks" in n for n in imports(path))}
    assert users == {"benchmark.py"}


def test_docs_hold_programs_for_sphinx_alone():
    found = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.py")}
    assert {name for name in found if not name.startswith("_ext/")} == {"conf.py"}


def test_draws_on_the_host_go_through_streams():
    makers = ("default_rng", "SeedSequence", "RandomState", "random.seed")
    users = {str(path.relative_to(PACKAGE)) for path in FILES if any(name in path.read_text() for name in makers)}
    assert users == {"streams.py"}
    hashers = {str(path.relative_to(PACKAGE)) for path in FILES if "crc32(" in path.read_text()}
    assert hashers == {"streams.py", "stored.py"}  # the second for checksums


def test_no_command_loads_all_distributions_of_scipy_to_start():
    """Loading them is a tenth of a command's start; what is needed of them stands in scipy.special."""
    users = {str(path.relative_to(PACKAGE)) for path in FILES if any("scipy.stats" in n for n in imports(path))}
    assert not users


def test_config_dicts_stop_at_the_config():
    users = {str(path.relative_to(PACKAGE)) for path in FILES if any("ml_collections" in n for n in imports(path))}
    assert users <= {"settings/parse.py", "study/run.py", "study/workdir.py"}


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.name)
def test_configs_import_ml_collections_and_each_other(path):
    assert {name.split(".")[0] for name in imports(path)} <= {"ml_collections", "configs"}


def jax_settings(path):
    """Uses of jax.config and jax.distributed in a file, however they are imported."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "jax":
            names.add(f"jax.{node.attr}")
    return {
        name
        for name in names | imports(path)
        if any(f"{name}.".startswith(f"jax.{part}.") for part in ("config", "distributed"))
    }


def test_jax_is_configured_in_launch_and_conftest_alone():
    files = [*FILES, *(ROOT / "configs").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    users = {str(path.relative_to(ROOT)) for path in files if jax_settings(path)}
    assert users == {"tests/conftest.py", "tests/launch/walk.py"}  # which the search must find; the second is a program


@pytest.mark.parametrize(
    "path", [path for path in PROGRAMS if path.relative_to(ROOT).parts[0] not in ("docs", "tests")], ids=relative
)
def test_text_is_read_and_written_in_utf8_whatever_the_locale(path):
    readers = ("open", "read_text", "write_text")
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
        # Those of other modules, and our own `files`, know no encoding or always the same one.
        if name not in readers or owner in ("os", "ts", "ts.KvStore", "tarfile", "files", "archive"):
            continue
        modes = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        binary = name == "open" and any("b" in mode for mode in modes)
        own = isinstance(node.func, ast.Name) and name != "open"
        assert binary or own or any(word.arg == "encoding" for word in node.keywords), f"line {node.lineno}"


def test_no_file_is_long():
    lengths = {relative(path): len(path.read_text().splitlines()) for path in PROGRAMS}
    assert {name for name, length in lengths.items() if length > 400} == set()


def test_no_function_is_long():
    lengths = {
        f"{name}:{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path, name in zip(FILES, NAMES, strict=True)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert {name for name, length in lengths.items() if length > 60} == set()


@pytest.mark.parametrize("path", PROGRAMS, ids=relative)
def test_every_module_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_files_that_pytest_leaves_out_by_itself_are_there_and_run_in_ci():
    long = [ROOT / "tests" / folder / f"test_{name}.py" for folder, names in LONG.items() for name in names.split()]
    assert [path for path in long if not path.is_file()] == []
    assert "\npytest\npytest -m 'long and not slow'\n" in (ROOT / ".ci" / "run").read_text()
