"""The way of the data is the order of the packages: none imports from one after its own."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "guidex"
ORDER = [
    *("errors", "files", "data", "config", "models", "guidance", "sampling", "features"),
    *("metrics", "reports", "runs", "tuning", "commands", "api", "cli", "__main__", "diffusers"),
]


def imported(path: Path) -> Iterator[str]:
    """The parts of guidex that a module imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            package, _, rest = name.partition(".")
            if package == "guidex" and rest:
                yield rest.partition(".")[0]


def test_every_part_has_its_place():
    parts = {path.stem for path in PACKAGE.iterdir() if path.name not in ("__pycache__", "configs")}
    assert parts - {"__init__"} == set(ORDER)


@pytest.mark.parametrize("part", ORDER)
def test_nothing_imports_upwards(part):
    files = [PACKAGE / f"{part}.py"]
    files = files if files[0].exists() else sorted((PACKAGE / part).rglob("*.py"))
    later = ORDER[ORDER.index(part) + 1 :]
    wrong = {path.name: sorted(set(imported(path)) & set(later)) for path in files}
    assert not any(wrong.values()), wrong
