"""The architecture, held by tests: who may import whom, programs that start fast, sizes, names.

Each rule is a function from source to violations, so that a control test can show it a bad snippet and see it fire.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BASE = {"configs", "data", "rq", "infer"}
MAY_IMPORT = {
    "configs": set(),
    "data": {"configs"},
    "rq": {"configs", "data"},
    "infer": {"configs", "data", "rq"},
    "preprocess": BASE,
    "train": BASE,
    "generation": BASE,
}
# Rooms of a package, each with the rooms of that package it may import. "" is the folder itself (contracts in data/;
# engine and loading in infer/, which are programs' and rooms' door to a model); programs may import every room.
ROOMS = {
    "data": {
        "store": set(),
        "": {"store"},
        "shaping": {"store", ""},
        "releases": {"store", ""},
        "adapters": {"store", "", "shaping", "releases"},
        "generator": {"store", ""},
        "sources": set(),
    },
    "rq": {
        "": set(),
        "stack": set(),
        "ids": {"stack"},
        "vectors": {"stack", "ids"},
        "quality": {"stack", "ids", "vectors"},
        "constructors": {"stack", "ids", "vectors", "quality"},
    },
    "infer": {
        "search": set(),
        "text": {"search"},
        "": {"search", "text"},
        "work": {"search", "text", ""},
        "chat": {"text"},
        "metrics": set(),
        "models": {"search", "text", "", "work", "metrics"},
        "server": {"search", "text", "", "work"},
        "tracing": {"search", "text", "", "work", "metrics"},
        "tables": {"metrics"},
        "page": {"metrics", "tables"},
    },
    "preprocess": {"": set(), "model": set(), "examples": set(), "teacher": {"examples"}, "tags": set()},
    "train": {
        "": {"scale"},
        "scale": set(),
        "supervised": {"", "scale"},
        "rewards": {""},
        "policy": {"", "rewards", "scale"},
        "plans": {"", "scale", "supervised", "policy"},
        "scratch": {""},
    },
    "generation": {"": set(), "makers": {""}},
}
NAMES_IN_A_ROOM, NAMES_IN_A_FOLDER = 14, 25
HEAVY = ("torch", "transformers", "trl", "faiss", "sklearn", "diffusers", "matplotlib")
FILE_LINES, FUNCTION_LINES = 400, 70
VAGUE = {"utils", "util", "common", "helpers", "helper", "misc"}
# Spelled in parts, so that this file does not contain what it looks for.
WORKPLACE = re.compile("/" + r"(?:work|root)/|\.\./" + "shared")
TEXT = {".py", ".sh", ".yaml", ".yml", ".toml", ".md", ".txt", ".csv", ".json", ".jinja", ".html", ""}


@cache
def repository_files() -> tuple[Path, ...]:
    """Files that belong to the repository: not environments, caches, data sets or runs."""
    skipped = {".git", ".venv", "outputs", "wandb", "__pycache__"}
    found = []
    for folder, names, files in os.walk(ROOT):
        here = Path(folder)
        caches = {name for name in names if name.endswith("_cache") or name == ".hypothesis"}
        at_data = here == ROOT / "data"
        data_sets = {name for name in names if at_data and not (here / name / "__init__.py").exists()}
        names[:] = sorted(set(names) - skipped - caches - data_sets)
        found += [here / name for name in sorted(files) if name not in (".env", ".git")]
    return tuple(found)


def python_files(*packages: str) -> list[Path]:
    """Python files of the repository, or of some of its packages."""
    files = [path for path in repository_files() if path.suffix == ".py"]
    return [path for path in files if not packages or path.relative_to(ROOT).parts[0] in packages]


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def product() -> dict[str, str]:
    """{module name: source} of every module of the framework."""
    return {module_name(path): path.read_text() for path in python_files(*MAY_IMPORT)}


@cache
def parsed(source: str) -> ast.Module:
    """Every file is asked many questions: parsed once."""
    return ast.parse(source)


@cache
def imports(source: str) -> frozenset[str]:
    """Every module name that a source may import, at any depth; `from a import b` gives `a` and `a.b`."""
    return frozenset(_imports(source))


def _imports(source: str) -> Iterator[str]:
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if function in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value


def relative_imports(source: str) -> list[int]:
    """Lines with `from .x import y`: they would escape the rules above."""
    nodes = ast.walk(parsed(source))
    return [node.lineno for node in nodes if isinstance(node, ast.ImportFrom) and node.level]


def wrong_way(module: str, source: str) -> set[str]:
    """Packages of ours that `module` imports against the direction."""
    package = module.split(".")[0]
    return {name.split(".")[0] for name in imports(source)} & MAY_IMPORT.keys() - MAY_IMPORT[package] - {
        package
    }


def room_of(module: str, rooms: dict[str, dict[str, set[str]]]) -> tuple[str, str]:
    """(package, room) of a module's name; the room is "" in the folder itself."""
    package, *rest = module.split(".")
    inside = len(rest) > 0 and rest[0] in rooms.get(package, {})
    return package, rest[0] if inside else ""


def wrong_rooms(module: str, source: str) -> set[str]:
    """Rooms of the module's own package that it imports against the arrows; programs may import all."""
    package, room = room_of(module, ROOMS)
    if package not in ROOMS or is_program(source):
        return set()
    reached = {
        room_of(name, ROOMS) for name in imports(source) if name.split(".")[0] == package and "." in name
    }
    return {there for _, there in reached} - ROOMS[package][room] - {room}


def classes_defined_twice(modules: dict[str, str]) -> dict[str, list[str]]:
    """{class name: modules} of public top-level classes that several modules define."""
    where: dict[str, list[str]] = {}
    for module, source in modules.items():
        for node in parsed(source).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                where.setdefault(node.name, []).append(module)
    return {name: found for name, found in where.items() if len(found) > 1}


@cache
def is_program(source: str) -> bool:
    """A module with a `main` function or an `if __name__ == "__main__"` block."""
    for node in parsed(source).body:
        if isinstance(node, ast.FunctionDef) and node.name == "main":
            return True
        if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test):
            return True
    return False


def imported_programs(modules: dict[str, str]) -> list[str]:
    """`importer -> program` for every module of ours that imports a program."""
    programs = {name for name, source in modules.items() if is_program(source)}
    return [
        f"{name} -> {target}"
        for name, source in modules.items()
        for target in sorted(programs & imports(source))
        if target != name
    ]


def long_functions(source: str, *, limit: int) -> list[str]:
    """`name (lines)` of functions longer than `limit` lines, decorators not counted."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(parsed(source)) if isinstance(node, kinds)]
    lengths = [(node.name, node.end_lineno - node.lineno + 1) for node in nodes]
    return [f"{name} ({length})" for name, length in lengths if length > limit]


BLOCKER = """
import importlib, json, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in HEAVY:
            raise ImportError("heavy import of " + name)

HEAVY, modules = json.loads(sys.argv[1])
sys.meta_path.insert(0, Block())
for module in modules:
    try:
        importlib.import_module(module)
    except ImportError as error:
        print(module, "-", error)
"""


def heavy_imports(modules: list[str], *, root: Path) -> list[str]:
    """Modules that fail to import in a Python where the heavy packages do not exist, with the reason."""
    command = [sys.executable, "-c", BLOCKER, json.dumps([HEAVY, modules])]
    env = os.environ | {"PYTHONPATH": str(root)}
    result = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


PROGRAMS = sorted(name for name, source in product().items() if is_program(source))


def test_there_is_something_to_check():
    assert len(product()) > 30 and len(PROGRAMS) > 5
    assert {name.split(".")[0] for name in product()} >= MAY_IMPORT.keys()


def test_imports_point_one_way():
    bad = {name: sorted(found) for name, source in product().items() if (found := wrong_way(name, source))}
    assert not bad, f"module: packages it must not import: {bad}"


def test_rooms_import_one_way():
    bad = {name: sorted(found) for name, source in product().items() if (found := wrong_rooms(name, source))}
    assert not bad, f"module: rooms it must not import: {bad}"


def test_a_listing_is_read_at_a_glance():
    folders: dict[Path, set[str]] = {}
    for path in python_files(*MAY_IMPORT):
        inside = path.relative_to(ROOT)
        for depth in range(1, len(inside.parts)):
            folders.setdefault(Path(*inside.parts[:depth]), set()).add(inside.parts[depth])
    counts = {str(folder): len(names - {"__init__.py"}) for folder, names in folders.items()}
    limits = {name: NAMES_IN_A_ROOM if "/" in name else NAMES_IN_A_FOLDER for name in counts}
    assert {name: count for name, count in counts.items() if count > limits[name]} == {}


def test_every_room_is_known():
    rooms = {path.parent.relative_to(ROOT) for path in python_files(*ROOMS) if path.name == "__init__.py"}
    unknown = [str(r) for r in rooms if len(r.parts) > 1 and r.parts[1] not in ROOMS[r.parts[0]]]
    assert unknown == []


def test_git_ignores_no_product_file():
    files = "\n".join(shown(path) for path in python_files(*MAY_IMPORT))
    command = ["git", "check-ignore", "--no-index", "--stdin"]
    result = subprocess.run(command, cwd=ROOT, input=files, capture_output=True, text=True, timeout=60)
    assert result.stdout.splitlines() == [], "product files hidden by .gitignore"
    command[-1:] = ["data/industrial/items.parquet", "data/shop/sids/rqkmeans/sids.parquet"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert len(result.stdout.splitlines()) == 2, "data sets under data/ must be ignored"


def test_product_code_imports_no_program():
    assert imported_programs(product()) == []


def test_a_class_name_means_one_class():
    assert classes_defined_twice(product()) == {}


def test_no_relative_imports():
    assert {name: lines for name, source in product().items() if (lines := relative_imports(source))} == {}


def test_packages_are_ours(tmp_path):
    packages = sorted({name.split(".")[0] for name in product()})
    code = f"import importlib\nfor p in {packages}: print(importlib.import_module(p).__file__)"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    files = [Path(line).resolve() for line in result.stdout.splitlines()]
    assert files == [ROOT / package / "__init__.py" for package in packages], result.stderr


def test_programs_import_nothing_heavy():
    assert heavy_imports(PROGRAMS, root=ROOT) == []


def test_programs_say_how_they_are_run():
    missing = [
        name
        for name in PROGRAMS
        if f"python -m {name}" not in (ast.get_docstring(parsed(product()[name])) or "")
    ]
    assert missing == [], "a program's docstring holds its exact command"


def test_sizes():
    sources = {shown(path): path.read_text() for path in python_files()}
    files = {name: n for name, text in sources.items() if (n := len(text.splitlines())) > FILE_LINES}
    assert files == {}, f"files of more than {FILE_LINES} lines"
    functions = {
        name: bad for name, text in sources.items() if (bad := long_functions(text, limit=FUNCTION_LINES))
    }
    assert functions == {}, f"functions of more than {FUNCTION_LINES} lines"


def test_no_module_without_a_subject():
    assert [
        shown(path) for path in python_files() if VAGUE & set(path.relative_to(ROOT).with_suffix("").parts)
    ] == []


def test_no_machine_is_named():
    texts = [path for path in repository_files() if path.suffix in TEXT]
    assert len(texts) > 50
    assert [shown(path) for path in texts if WORKPLACE.search(path.read_text(errors="replace"))] == []


# Controls: each rule is shown what it forbids.


def test_control_imports():
    assert wrong_way("train.bad", "import preprocess.examples.rows") == {"preprocess"}
    assert wrong_way("data.bad", "def f():\n    from infer import trie") == {"infer"}
    assert wrong_way("rq.bad", "import importlib\nimportlib.import_module('train.sft')") == {"train"}
    assert (
        wrong_way("infer.good", "import data.sid\nfrom infer.search.trie import Trie\nimport json") == set()
    )
    assert relative_imports("import json\nfrom .sid import SidTable") == [2]


def test_control_rooms():
    assert wrong_rooms("infer.search.bad", "from infer.models import counting") == {"models"}
    assert wrong_rooms("data.sid", "from data.adapters.amazon import read") == {"adapters"}
    assert wrong_rooms("infer.search.good", "from infer.search.trie import Trie\nimport data.sid") == set()
    assert wrong_rooms("data.prepare", "from data.adapters import recipe\ndef main(args): ...") == set()


def test_control_class_names():
    twice = {"a": "class Plan: ...", "b": "class Plan: ...\nclass Other: ..."}
    assert classes_defined_twice(twice) == {"Plan": ["a", "b"]}


def test_control_programs():
    run = "def work(): ...\nif __name__ == '__main__':\n    work()"
    modules = {"rq.embed": "def main(args): ...", "rq.assign": run}
    modules |= {
        "rq.a": "from rq import embed",
        "rq.b": "from rq.assign import work",
        "rq.c": "import rq.embed as e",
    }
    assert imported_programs(modules) == ["rq.a -> rq.embed", "rq.b -> rq.assign", "rq.c -> rq.embed"]
    assert not is_program("def run(args_class, main):\n    main()")


def test_control_heavy_imports(tmp_path):
    (tmp_path / "quick.py").write_text("import json\ndef f():\n    import torch\n")
    (tmp_path / "slow.py").write_text("from transformers import AutoModel\n")
    (tmp_path / "through.py").write_text("import slow\n")
    lines = heavy_imports(["quick", "slow", "through"], root=tmp_path)
    assert [line.split(" - ")[0] for line in lines] == ["slow", "through"]


def test_control_sizes_and_names():
    body = "    x = 1\n" * 3
    assert long_functions(f"def long():\n{body}\nclass A:\n    def short(self): ...", limit=3) == ["long (4)"]
    for bad in ("cd /" + "work/main", "RAW=.." + "/shared/data", "ls /" + "root/x"):
        assert WORKPLACE.search(bad)
    for good in ("a framework/model", "from the root/of it", "shared/prompt"):
        assert not WORKPLACE.search(good)
