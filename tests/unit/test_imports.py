"""Imports go down: only from a lower floor or the own folder, and only through a folder's front door.

Reads every import of the package with ``ast``, also those inside functions. See docs/architecture.md.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "kumquant"

# A floor may import from the floors below it. Folders on one floor do not know each other; floor 0 has none.
FLOORS = {
    "errors": 0, "dtypes": 0, "schemes": 0, "progress": 0, "files": 0, "json_files": 0, "processors": 0,
    "tensor_cache": 1, "checkpoint": 1, "tokenizer": 1, "hub": 1,
    "models": 2, "quant": 2, "chat": 2,
    "runtime": 3,
    "convert": 4, "engine": 4, "export": 4,
    "evaluate": 5, "bench": 5, "demo": 5,
    "cli": 7,
    "__init__": 8, "__main__": 8,
}
# The compiled core is below everything, and the version is no code.
ANYWHERE = {"_native", "__version__"}


ModulePath = tuple[str, ...]  # ("tensor_cache", "plan"); () is kumquant/__init__.py


def imported(tree: ast.AST, module: ModulePath, is_package: bool) -> Iterator[tuple[int, ModulePath]]:
    """(line, path) of every import of the package itself; a path may end in a name inside a module.

    module: the importing module.
    """
    own_package = module if is_package else module[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] == "kumquant":
                    yield node.lineno, tuple(parts[1:])
        elif isinstance(node, ast.ImportFrom):
            named = tuple(node.module.split(".")) if node.module else ()
            if node.level:
                base = own_package[: len(own_package) - node.level + 1] + named
            elif named[:1] == ("kumquant",):
                base = named[1:]
            else:
                continue
            for alias in node.names:
                yield node.lineno, (*base, alias.name)


def is_private(path: ModulePath) -> bool:
    """Whether the path goes past the front door of its folder, to a submodule that it does not offer."""
    folder, name = PACKAGE / path[0], path[1]
    if not (folder / f"{name}.py").exists() and not (folder / name / "__init__.py").exists():
        return False
    return len(path) > 2 or name not in offered(folder)


def offered(folder: Path) -> set[str]:
    """Names that the folder's ``__init__`` imports, such as a function called like the module it is in."""
    tree = ast.parse((folder / "__init__.py").read_text())
    return {
        alias.asname or alias.name
        for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }


def violations(source: str, module: ModulePath, is_package: bool) -> list[str]:
    """What is wrong with the imports of one module's source, a line each."""
    own = module[0] if module else "__init__"
    found = []
    for line, target in imported(ast.parse(source), module, is_package):
        where = f"{'/'.join(module) or '__init__'}:{line} imports {'.'.join(target)}"
        there = target[0] if target else "__init__"
        if there in ANYWHERE or there == own:
            continue
        if len(target) == 1 and there not in FLOORS:
            there = "__init__"  # ``from kumquant import something``
        if there not in FLOORS:
            found.append(f"{where}, which has no floor")
        elif FLOORS[there] > FLOORS[own] or (FLOORS[there] == FLOORS[own] > 0):
            found.append(f"{where}: floor {FLOORS[own]} does not know floor {FLOORS[there]}")
        elif len(target) > 1 and is_private(target):
            found.append(f"{where}: import from the folder {there}, its submodules are private")
    return found


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    assert violations(path.read_text(), parts[:-1] if is_package else parts, is_package) == []


def test_every_folder_and_module_has_a_floor():
    names = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in SOURCES}
    assert names <= FLOORS.keys()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_function_imports_the_package(path):
    """An import inside a function hides a floor from its reader; only optional extras may be imported so."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    inner = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, functions)]
    assert [found for node in inner for found in imported(node, ("folder", "module"), False)] == []


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        (("tensor_cache", "verify"), "from ..errors import Error", ""),
        (("tensor_cache", "verify"), "from .plan import FinishedShard", ""),
        (("convert", "run"), "from ..tensor_cache import CacheWriter", ""),
        (("convert", "run"), "from kumquant.tensor_cache import CacheWriter", ""),
        (("convert", "run"), "from .. import _native", ""),
        (("cli", "verify"), "from ..tensor_cache import verify", ""),  # the function of that name
        (("runtime", "model"), "from .._native import step", ""),
        (("convert", "run"), "import json, numpy.linalg", ""),
        (("files",), "from .errors import Error", ""),
        (("tensor_cache", "verify"), "from ..models import TensorCache", "floor 1 does not know floor 2"),
        (("tensor_cache", "verify"), "def f():\n    from ..models import x", "tensor_cache/verify:2"),
        (("tensor_cache", "verify"), "from .. import checkpoint", "floor 1 does not know floor 1"),
        (("models", "llama"), "import kumquant.quant", "floor 2 does not know floor 2"),
        (("convert", "run"), "from ..tensor_cache.plan import plan_shards", "its submodules are private"),
        (("convert", "run"), "from ..tensor_cache import plan", "its submodules are private"),
        (("convert", "run"), "import kumquant.tensor_cache.plan", "its submodules are private"),
        (("cli", "main"), "from .. import LLM", "floor 7 does not know floor 8"),
        (("errors",), "from .tensor_cache import validate", "floor 0 does not know floor 1"),
    ],
)
def test_the_check_itself(module, source, expected):
    found = violations(source, module, is_package=False)
    assert len(found) == (1 if expected else 0)
    assert expected in "".join(found)
