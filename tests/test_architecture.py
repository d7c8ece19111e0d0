"""The package is as README draws it: every part is listed, and imports run down the list."""

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted((ROOT / "rlx").rglob("*.py"))
}
ROOTS = ("rlx", "rlx.__main__", "rlx.api")
"""The package itself: its version, which all may ask for, and its two doors."""


def listed() -> dict[str, int]:
    """Files and folders of rlx/ in README's list → the number of their line."""
    text = (ROOT / "README.md").read_text()
    (block,) = re.findall(r"```\n(rlx/.*?)```", text, re.DOTALL)
    lines = {}
    for number, line in enumerate(block.splitlines()):
        names = line.partition("   ")[0].removeprefix("rlx/").split()
        lines |= {name.removesuffix("/").removesuffix(".py"): number for name in names}
    return lines


def part(module: str) -> str:
    """The file or folder of rlx/ that a module is, or lies in."""
    return module.split(".")[1]


def imports(node: ast.AST) -> Iterator[str]:
    """Modules of rlx that are imported when a file runs, also within its functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.ImportFrom) and (child.module or "").partition(".")[0] == "rlx":
            for alias in child.names:
                full = f"{child.module}.{alias.name}"
                yield full if full in MODULES else str(child.module)
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names if alias.name in MODULES)
        yield from imports(child)


EDGES = {name: set(imports(ast.parse(file.read_text()))) for name, file in MODULES.items()}


def test_readme_lists_every_part():
    parts = {path.stem for path in (ROOT / "rlx").iterdir() if not path.name.startswith("_")}
    assert set(listed()) == parts - {"py"}


@pytest.mark.parametrize("module", [name for name in MODULES if name not in ROOTS])
def test_imports_run_down_the_list(module):
    lines = listed()
    for other in EDGES[module] - set(ROOTS):
        assert lines[part(module)] <= lines[part(other)], f"{module} imports {other}, above it"


def test_no_circle():
    graph = {name: others - {"rlx"} for name, others in EDGES.items() if name != "rlx"}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError with its modules
