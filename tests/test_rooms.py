"""The house rules: who may import whom, what is packaged, and that words and files agree."""

from __future__ import annotations

import ast
import graphlib
import io
import json
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("common", "client", "server", "deploy")
MAY_IMPORT = {
    "common": {"common"},
    "client": {"common", "client"},
    "server": {"common", "server"},
    "deploy": set(ROOMS),
}
FACE = ROOT / "deploy" / "api"  # installed as `penchant` itself, and imported by no room
SOURCES = sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
FRONT = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
DOCS = [*(ROOT / page for page in FRONT), *sorted((ROOT / "docs").rglob("*.md"))]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Every module that `path` imports, at whatever depth of the code, in dotted form."""
    return tuple(_imported(path))


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


# --- who imports whom -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_a_room_imports_only_what_it_may(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    for module in imports(path):
        assert module != "penchant" or path.parent == FACE, f"{name(path)}: import the rooms, not their face"
        if module.startswith("penchant."):
            other = module.split(".")[1]
            if path.parent == FACE and other.startswith("_"):
                continue
            assert other in MAY_IMPORT[room], f"{name(path)}: {room} may not import {module}"


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=name)
def test_rooms_are_imported_by_their_full_name(path: Path) -> None:
    for module in imports(path):
        assert not module.startswith("."), f"{name(path)} imports {module}; write penchant.…"
        assert module.split(".")[0] not in ROOMS, f"{name(path)} imports bare {module}"


def test_the_import_rule_sees_a_forbidden_import(tmp_path: Path) -> None:
    inside = tmp_path / "inside.py"
    inside.write_text("def f():\n    from penchant.server import round\n    import server.round\n")
    assert set(imports(inside)) == {"server.round", "penchant.server", "penchant.server.round"}


# --- rooms within rooms ---------------------------------------------------------------------------

# Each room's sub-rooms and files, the lowest floor first. What stands on one floor imports from the floors
# below it, never from beside or above: a circle can't be built, by whatever import.
FLOORS: dict[str, list[set[str]]] = {
    "common": [
        {"csv_text", "printable"},
        {"durations", "network", "errors", "terminal", "wording"},
        {"foreign_files", "registry", "settings", "storage", "wire"},
        {"objectives", "shares"},
        {"config", "crypto", "data"},
        {"membership", "model", "privacy"},
        {"secagg"},
    ],
    "client": [{"vault", "learning"}, {"secagg"}, {"agent"}, {"device"}],
    "server": [
        {
            "charts",
            "cohort",
            "combination",
            "optimizers",
            "privacy_figures",
            "releases",
            "run_manifest",
            "waiting",
        },
        {"journal"},
        {"journal_reader", "measured"},
        {"secagg", "monitoring", "stopping"},
        {"standing"},
        {"canary"},
        {"run", "console", "exchange", "opened_sum", "noise_terms"},
        {"availability"},
        {"attempt_log"},
        {"round"},
        {"flower_app"},
    ],
    "deploy": [
        {
            "datasets",
            "error_report",
            "evaluation",
            "flower",
            "json_tables",
            "owner_policy",
            "process_table",
            "run_directory",
            "run_inputs",
        },
        {"earlier_round", "recipes"},
        {"audit", "configuration", "fleet"},
        {"simulation"},
        {"comparison", "tuning"},
        {"report"},
        {"console"},
        {"api", "device_api"},
        {"device_page"},
        {"cli"},
    ],
}
FLOWER = {"flwr.app", "flwr.clientapp", "flwr.serverapp"}  # what Flower offers to everybody
USE_PRIVATE_FLOWER = ("deploy/flower/", "client/agent/supernode.py")
# What a function may import when it is called: it is heavy, or belongs to an extra that may not be installed.
# Modules of penchant's own that load what is heavy or in an extra, and who may load them late for it.
LATE = {
    "numpy": ("deploy/datasets/partitions.py",),
    "penchant.client.device.export": ("deploy/fleet/release_files.py",),
    "penchant.client.learning.active": ("client/device/labelling.py",),
    "penchant.client.learning.in_this_process": ("client/learning/training_process.py",),
    "penchant.client.learning.model_cache": (
        "client/learning/model_facts.py",
        "client/learning/training_process.py",
        "deploy/fleet/release_files.py",
    ),
    "penchant.common.model.modules": ("deploy/fleet/release_files.py",),
    "penchant.common.model.signature": ("deploy/fleet/run_signature.py",),
    "penchant.deploy.simulation.ray": ("deploy/simulation/runner.py",),
    "penchant.deploy.report": ("deploy/report/__init__.py",),
}
HEAVY = {
    "bitsandbytes", "datasets", "flwr", "gguf", "grpc", "httpx", "huggingface_hub", "matplotlib",
    "onnx_ir", "onnxruntime", "onnxscript", "optuna", "pandas", "peft", "pyarrow", "ray", "rdata",
    "safetensors", "tokenizers", "torch", "transformers", "uvicorn",
}  # fmt: skip


def sub_room(path: Path) -> str:
    """The sub-room of a room in which a module lies, or the module's own name where it lies in the hall."""
    return path.relative_to(ROOT).with_suffix("").parts[1]


def within(room: str, path: Path) -> Iterator[str]:
    """Sub-rooms and files of `room` that `path` imports from, its own left out."""
    for module in imports(path):
        parts = module.split(".")
        if parts[:2] == ["penchant", room] and len(parts) > 2 and parts[2] != sub_room(path):
            yield parts[2]


def floor_of(room: str, part: str) -> int:
    (floor,) = (number for number, parts in enumerate(FLOORS[room]) if part in parts)
    return floor


@pytest.mark.parametrize("room", ROOMS)
def test_every_sub_room_stands_on_one_floor(room: str) -> None:
    there = {sub_room(p) for p in SOURCES if p.relative_to(ROOT).parts[0] == room} - {"__init__"}
    listed = [part for floor in FLOORS[room] for part in floor]
    assert sorted(listed) == sorted(there)


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_imports_go_downstairs(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    for part in within(room, path):
        own = floor_of(room, sub_room(path)) if sub_room(path) != "__init__" else len(FLOORS[room])
        assert floor_of(room, part) < own, f"{name(path)} may not import from {room}/{part}"


def test_there_is_no_circle_of_files() -> None:
    """Imports inside functions count as well: a lazy import can't hide a circle."""
    modules = {
        f"penchant.{name(p).removesuffix('.py').removesuffix('/__init__').replace('/', '.')}" for p in SOURCES
    }
    graph = {}
    for path in SOURCES:
        own = f"penchant.{name(path).removesuffix('.py').removesuffix('/__init__').replace('/', '.')}"
        named = set(imports(path)) & modules
        # `from package import module` names both: the package is entered on the way, not asked for anything
        graph[own] = {m for m in named if not any(other.startswith(f"{m}.") for other in named)} - {own}
    order = graphlib.TopologicalSorter(graph)
    order.prepare()  # raises CycleError, which names the circle


@cache
def doors(room: str) -> dict[str, set[str]]:
    """What lies right inside a room -> what else right inside it that imports."""
    found: dict[str, set[str]] = {}
    for path in SOURCES:
        if path.relative_to(ROOT).parts[0] == room and sub_room(path) != "__init__":
            found.setdefault(sub_room(path), set()).update(within(room, path))
    return found


def stairs(graph: dict[str, set[str]], door: str) -> int:
    """The length of the longest chain of imports that begins at a door."""
    return 1 + max((stairs(graph, below) for below in graph[door] if below in graph), default=0)


@pytest.mark.parametrize("room", ROOMS)
def test_the_page_of_the_architecture_counts_doors_and_floors(room: str) -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    graph = doors(room)
    counted = f"{len(graph)} / {max(stairs(graph, door) for door in graph)}"
    assert re.search(rf"^\| {room}: doors / floors \|[^|]*\| {counted} \|$", page, re.M), counted


def test_the_page_of_the_architecture_counts_the_command() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    (found,) = (
        node
        for node in ast.walk(tree(ROOT / "deploy/cli/researcher.py"))
        if isinstance(node, ast.FunctionDef) and node.name == "simulate"
    )
    assert found.end_lineno is not None
    counted = f"{found.end_lineno - found.lineno + 1}, {len(found.args.args)}"
    assert re.search(rf"^\| lines and parameters of .*\| {counted} \|$", page, re.M), counted


@pytest.mark.parametrize("room", ROOMS)
def test_the_page_of_the_architecture_lists_each_sub_room_once_and_above_what_it_imports(room: str) -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    table = page.partition("| room | sub-room or file | holds |")[2].partition("\n\n")[0]
    listed = [
        set(re.findall(rf"`{room}/(\w+)(?:/|\.py)`", line.split("|")[2])) for line in table.splitlines()[1:]
    ]
    lines = [parts for parts in listed if parts]
    assert sorted(part for parts in lines for part in parts) == sorted(doors(room))
    for number, parts in enumerate(lines):
        below = set[str]().union(*lines[number + 1 :])
        for part in parts:
            assert doors(room)[part] - {"__init__"} <= below, f"{room}/{part} stands too low"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_private_parts_of_flower_are_used_in_one_place(path: Path) -> None:
    if name(path).startswith(USE_PRIVATE_FLOWER):
        return
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "flwr":
            assert node.module in FLOWER, f"{name(path)}:{node.lineno} uses {node.module}"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_only_heavy_modules_are_imported_inside_a_function(path: Path) -> None:
    """But for the faces, on which nothing stands: a command and a name of the API load what they need."""
    if path.relative_to(ROOT).parts[:2] in (("deploy", "cli"), ("deploy", "api")):
        return
    for function in ast.walk(tree(path)):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = (
                    [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                )
                for module in modules:
                    heavy = module.split(".")[0] in HEAVY or name(path) in LATE.get(module, ())
                    assert heavy, f"{name(path)}:{node.lineno}: import {module} at the top"


# --- how the code is written ----------------------------------------------------------------------


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_no_assert_and_no_bare_except_outside_tests(path: Path) -> None:
    for node in ast.walk(tree(path)):
        assert not isinstance(node, ast.Assert), f"{name(path)}:{node.lineno}: raise a typed error instead"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{name(path)}:{node.lineno}: name what is caught"


def classes(path: Path) -> Iterator[str]:
    """The names of all classes that `path` defines, private ones and those within others too."""
    yield from (node.name for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef))


def test_a_class_name_means_one_thing_in_all_rooms() -> None:
    """Who searches for a name finds one class. What gRPC generates is named after the service, not by us."""
    places: dict[str, list[str]] = {}
    for path in (path for path in SOURCES if not path.stem.endswith("_pb2_grpc")):
        for found in classes(path):
            places.setdefault(found, []).append(name(path))
    assert {found: where for found, where in places.items() if len(where) > 1} == {}


def test_the_rule_of_class_names_sees_every_class(tmp_path: Path) -> None:
    inside = tmp_path / "inside.py"
    inside.write_text("class Asked:\n    class _Text: ...\ndef f():\n    class Group: ...\n")
    assert sorted(classes(inside)) == ["Asked", "Group", "_Text"]


def test_no_drawer_for_everything() -> None:
    assert [name(p) for p in SOURCES if p.stem in {"utils", "util", "helpers", "misc"}] == []


def test_tests_are_not_a_package() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


# --- what is packaged -----------------------------------------------------------------------------


def setuptools_table() -> dict[str, Any]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return project["tool"]["setuptools"]


def package_of(folder: Path) -> str:
    """The name under which a folder is installed."""
    return "penchant" if folder == FACE else f"penchant.{'.'.join(folder.relative_to(ROOT).parts)}"


def folder_of(package: str) -> Path:
    """The folder that is installed under a name."""
    return FACE if package == "penchant" else ROOT / package.removeprefix("penchant.").replace(".", "/")


def test_every_folder_with_code_is_a_package_that_is_installed() -> None:
    on_disk = {package_of(p.parent) for p in SOURCES}
    table = setuptools_table()
    assert set(table["packages"]) == on_disk
    rooms = {f"penchant.{room}": room for room in ROOMS}  # what is inside follows
    assert table["package-dir"] == rooms | {"penchant": "deploy/api"}
    for package in on_disk:
        assert (folder_of(package) / "__init__.py").is_file(), package


def test_every_other_file_of_a_room_is_package_data() -> None:
    covered: set[Path] = set()
    for package, patterns in setuptools_table()["package-data"].items():
        folder = folder_of(package)
        covered.update(p for pattern in patterns for p in folder.glob(pattern))
    data = {
        p
        for room in ROOMS
        for p in (ROOT / room).rglob("*")
        if p.is_file() and p.suffix != ".py" and "__pycache__" not in p.parts
    }
    assert sorted(map(name, data - covered)) == []


def test_each_room_is_typed() -> None:
    assert [room for room in ROOMS if not (ROOT / room / "py.typed").is_file()] == []


# --- the command line stays quick -----------------------------------------------------------------


HEAVY_FOR_HELP = {"torch", "transformers", "peft", "matplotlib", "flwr", "pyarrow"}
COMMANDS = {
    f"penchant.deploy.cli.{module}"
    for module in ("researcher", "quickstart", "authority", "server", "console")
}
OF_A_DEVICE = {
    f"penchant.deploy.cli.device.{module}"
    for module in ("choices", "page", "chat", "programs", "forgetting", "membership", "agent", "model")
}
SETTINGS = {"penchant.common.config", "penchant.common.settings", "penchant.deploy.configuration"}


@pytest.mark.parametrize(
    ("line", "unwanted"),
    [
        (
            "--help",
            COMMANDS | OF_A_DEVICE | SETTINGS | {"penchant.deploy.cli.device", "numpy", "importlib.metadata"},
        ),
        ("--version", COMMANDS | OF_A_DEVICE | SETTINGS | {"rich"}),
        ("device rank --help", (COMMANDS | OF_A_DEVICE | SETTINGS) - {"penchant.deploy.cli.device.model"}),
        ("device --help", COMMANDS),
        ("server --help", (COMMANDS | OF_A_DEVICE) - {"penchant.deploy.cli.server"}),
        ("simulate --help", (COMMANDS | OF_A_DEVICE) - {"penchant.deploy.cli.researcher"}),
    ],
)
def test_help_imports_nothing_that_it_does_not_need(line: str, unwanted: set[str]) -> None:
    script = (
        "import sys\n"
        "from penchant.deploy.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as leave:\n    code = leave.code\nelse:\n    code = 0\n"
        "print(code, *sys.modules, file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", script, *line.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    code, *modules = done.stderr.split()
    assert (done.returncode, code) == (0, "0"), done.stderr
    assert done.stdout
    assert (HEAVY_FOR_HELP | unwanted) & set(modules) == set()


def test_what_stays_up_beside_a_server_loads_no_torch() -> None:
    modules = ("enrolment_service", "signals", "backup", "member_facts")
    script = "import sys\n" + "".join(f"import penchant.deploy.fleet.{module}\n" for module in modules)
    script += "sys.exit('torch is loaded' if 'torch' in sys.modules else 0)\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


OWNERS_LINES = ("request --out asked", "pause", "pause --off", "runs", "import choices.jsonl")


def test_a_device_that_only_takes_part_loads_no_torch(tmp_path: Path) -> None:
    """The agent's process and the commands that need no model; the processes that train load it."""
    choice = {"prompt": "on it: ", "chosen": "yes", "rejected": "no"}
    (tmp_path / "choices.jsonl").write_text(json.dumps(choice) + "\n")
    script = (
        "import sys\nimport penchant.client.agent.socket, penchant.client.device.joining\n"
        "from penchant.deploy.cli.main import main\n"
        f"for line in {OWNERS_LINES!r}:\n"
        "    sys.argv = ['penchant', 'device', *line.split(), '--home', 'device']\n"
        "    try:\n        main()\n    except SystemExit as leave:\n        assert not leave.code, line\n"
        "    assert 'torch' not in sys.modules, line\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 new choices recorded" in done.stdout


# --- words and files agree ------------------------------------------------------------------------


def words(path: Path) -> Iterator[str]:
    """What stands in `code` or in fenced blocks of a page, a line at a time."""
    text = path.read_text(encoding="utf-8")
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    for block in fenced:
        yield from re.sub(r"\\\n\s*", " ", block).splitlines()
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


@cache
def commands_of_penchant() -> dict[str, Any]:
    """Every command, and group of them, by its name."""
    import typer.main

    from penchant.deploy.cli.main import app

    return dict(getattr(typer.main.get_command(app), "commands", {}))


def options_of(command: str, rest: str) -> set[str]:
    """The options of a command, or of the one that `rest` names within a group: `penchant device join …`."""
    found = commands_of_penchant()[command]
    path = command
    for word in rest.split():
        within = getattr(found, "commands", {})
        if not within or not re.fullmatch(r"[a-z]+(?:-[a-z]+)*", word):
            break
        assert word in within, f"there is no `penchant {path} {word}`"
        found, path = within[word], f"{path} {word}"
    return {"--help"} | {o for p in found.params for o in [*p.opts, *p.secondary_opts]}


@pytest.mark.parametrize("page", DOCS, ids=name)
def test_pages_name_only_commands_and_options_that_exist(page: Path) -> None:
    known = commands_of_penchant()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for line in words(page):
        for command in re.findall(r"\bpenchant ([a-z]+)\b", line):
            assert command in known, f"{name(page)}: there is no `penchant {command}`"
        for command, rest in re.findall(r"\bpenchant ([a-z]+)\b([^|;&]*)", line):
            known_options = options_of(command, rest)
            unknown = set(re.findall(r"--[a-z][a-z-]*", rest)) - known_options
            assert not unknown, f"{name(page)}: `penchant {command}` has no {sorted(unknown)}"
        for target in re.findall(r"^make ([a-z-]+)", line):
            assert target in targets, f"{name(page)}: there is no `make {target}`"


@pytest.mark.parametrize("page", DOCS, ids=name)
def test_pages_name_only_files_that_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [t for t in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if not t.startswith(("http", "mailto"))]
    for target in links:
        assert (page.parent / target).exists(), f"{name(page)}: no {target}"
    inside = re.compile(rf"^(?:{'|'.join([*ROOMS, 'tests', 'docs'])})/[\w./*-]*$|^\.ci/\w+$")
    for word in words(page):
        if inside.match(word):
            assert list(ROOT.glob(word.rstrip("/"))), f"{name(page)}: no {word}"


def remarks(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of every comment and docstring."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        value = node.value if isinstance(node, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield value.lineno, value.value


def headings(page: Path) -> set[str]:
    """What may stand behind the # of a link to a page, as GitHub makes it of the headings."""
    found = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def into_the_void(source: str) -> list[str]:
    """What comments and docstrings refer to and is not there: a line each."""
    missing = []
    for line, text in remarks(source):
        missing += [f"{line}: {word}" for word in re.findall(r"\bDESIGN\b|\bHOUSE\b", text)]
        for page, heading in re.findall(r"(docs/[\w/-]+\.\w+)(?:#([\w-]+))?", text):
            if not (ROOT / page).is_file():
                missing.append(f"{line}: {page}")
            elif heading and heading not in headings(ROOT / page):
                missing.append(f"{line}: {page}#{heading}")
    return missing


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_comments_refer_only_to_documents_and_headings_that_exist(path: Path) -> None:
    assert into_the_void(path.read_text(encoding="utf-8")) == []


def test_the_rule_of_references_sees_each_kind_of_void() -> None:
    word = "DES" + "IGN"
    source = f'''"""As {word} section 5 says (docs/protocol.md#stages)."""
x = "docs/nowhere.md"  # a string refers to nothing
# see docs/nowhere.md, and docs/protocol.md#no-such-heading
'''
    found = into_the_void(source)
    assert found == ["3: docs/nowhere.md", "3: docs/protocol.md#no-such-heading", f"1: {word}"]


def test_every_link_of_a_page_ends_in_a_page_that_is_reachable() -> None:
    front = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [name(p) for p in DOCS if p.parent == ROOT / "docs" and f"docs/{p.name}" not in front]
    assert missing == []


# --- names inside the tests' string programs, which no type checker sees --------------------------

IN_A_STRING = re.compile(r"(?:^|\n|;)\s*from penchant\.([\w.]+) import ([\w, ]+)")


@cache
def bound_in(module: str) -> set[str]:
    """Names that a module of the rooms binds, and those of the modules in it; empty without one."""
    place = ROOT.joinpath(*module.split("."))
    path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    if not path.is_file():
        return set()
    found = {p.stem for p in place.glob("*")} if place.is_dir() else set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def stale_names(source: str) -> list[str]:
    """What the string programs in `source` import from penchant and it does not have."""
    texts = (n.value for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Constant))
    found = []
    for text in filter(lambda text: isinstance(text, str), texts):
        for module, names in IN_A_STRING.findall(str(text)):
            wanted = (one.split(" as ")[0].strip() for one in names.split(","))
            found += [f"penchant.{module}: {one}" for one in wanted if one and one not in bound_in(module)]
    return found


@pytest.mark.parametrize("path", TESTS, ids=name)
def test_programs_in_strings_import_only_what_there_is(path: Path) -> None:
    assert stale_names(path.read_text(encoding="utf-8")) == []


def test_a_stale_name_in_a_string_is_seen() -> None:
    program = "import sys\nfrom penchant.client.device.device import Device, " + "Home"
    assert stale_names(repr(program)) == ["penchant.client.device.device: Home"]
    gone = "from penchant.client." + "home import Device"
    assert stale_names(repr(gone)) == ["penchant.client.home: Device"]


def test_the_page_at_a_package_index_links_to_no_file_of_the_repository() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    links = re.findall(r"\]\(([^)]*)\)", project["readme"]["text"])
    assert [link for link in links if not link.startswith("https://")] == []


def test_the_tree_knows_no_machine() -> None:
    trace = re.compile(r"/wor[k]/|/roo[t]/|/hom[e]/\w|index[-]url|find[-]links")
    suffixes = {".py", ".md", ".toml", ".txt", ".j2", ".json", ".yml", ".sh", ""}
    folders = [*ROOMS, "tests", "docs", ".ci"]
    files = [p for folder in folders for p in (ROOT / folder).rglob("*") if p.is_file()]
    files += [p for p in ROOT.iterdir() if p.is_file() and p.name != ".git"]
    for path in files:
        if path.suffix in suffixes and "__pycache__" not in path.parts:
            found = trace.search(path.read_text(encoding="utf-8", errors="replace"))
            assert found is None, f"{name(path)}: {found and found.group()}"
