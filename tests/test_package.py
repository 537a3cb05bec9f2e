"""The package as a whole: what it exports, which way its imports run, and how long its functions are."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles

import msbench
import pytest

ROOT = Path(msbench.__file__).parent
FOLDERS = ("attacks", "benchmark", "defenses", "leaderboard", "targets")
"""Where code is, beside the files at the root; tests and build products are not of the package."""
FILES = sorted([*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))])

FORBIDDEN = {
    "targets": {"attacks", "defenses", "benchmark", "leaderboard"},
    "attacks": {"defenses", "benchmark", "leaderboard"},
    "defenses": {"attacks", "benchmark", "leaderboard"},
    "leaderboard": {"attacks", "defenses", "targets", "benchmark", "torch", "torchvision", "timm"},
    "components": {"attacks", "defenses", "targets", "benchmark", "leaderboard", "torch", "torchvision", "timm"},
    "files": {"attacks", "defenses", "targets", "benchmark", "leaderboard", "torch"},
    "errors": {"attacks", "defenses", "targets", "benchmark", "leaderboard", "torch"},
}
"""What a part of the package must not import."""


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def part(path: Path) -> str:
    """The subpackage that a file is in, or the module it is."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Parts of msbench and foreign packages that a file imports anywhere in it, each by its first name."""
    package = ["msbench", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            base = base if node.level else str(node.module)
            modules = [f"{base}.{alias.name}" for alias in node.names]
        for module in modules:
            names = module.split(".")
            yield names[1] if names[0] == "msbench" and len(names) > 1 else names[0]


def test_the_parts_are_found() -> None:
    assert {part(path) for path in FILES} >= {*FOLDERS, "components", "errors", "files", "__init__"}
    session = set(imported(ROOT / "benchmark" / "session.py"))
    assert session >= {"attacks", "defenses", "targets", "leaderboard", "torch"}


@pytest.mark.parametrize("path", [path for path in FILES if part(path) in FORBIDDEN], ids=relative)
def test_imports_run_one_way(path: Path) -> None:
    assert set(imported(path)).isdisjoint(FORBIDDEN[part(path)])


@pytest.mark.parametrize("path", sorted((ROOT / "leaderboard").rglob("*.py")), ids=relative)
def test_the_leaderboard_needs_no_other_part(path: Path) -> None:
    parts = {part(path) for path in FILES}
    assert set(imported(path)) & parts <= {"leaderboard", "errors", "files", "components"}


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_inside_the_package_imports_are_relative(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and not node.level:
            assert str(node.module).partition(".")[0] != "msbench"
        if isinstance(node, ast.Import):
            assert all(alias.name.partition(".")[0] != "msbench" for alias in node.names)


@pytest.mark.parametrize(
    "modules",
    [
        ["msbench", "msbench.components"],
        [
            ".".join(["msbench", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")
            for path in sorted((ROOT / "leaderboard").rglob("*.py"))
        ],
    ],
    ids=["msbench", "leaderboard"],
)
def test_importing_it_loads_no_torch(modules: list[str]) -> None:
    code = f"import sys, {', '.join(modules)}; print([name for name in ('torch', 'timm') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (found.stdout.strip(), found.stderr) == ("[]", "")


# ---------------------------------------------------------------------------------------------------- exports


def test_every_export_is_there() -> None:
    for name in msbench.__all__:
        assert getattr(msbench, name) is not None, name


def test_the_exports_are_exactly_the_public_names() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    for_type_checkers = {
        alias.asname or alias.name
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    lazily = set(msbench._HOME)
    at_once = {"PROTOCOL", "__version__"}
    assert set(msbench.__all__) == lazily | at_once == for_type_checkers | at_once
    assert len(msbench.__all__) == len(set(msbench.__all__))


def test_an_exported_class_is_the_one_at_home() -> None:
    from msbench.attacks.base import Attack
    from msbench.defenses.base import Defense

    assert msbench.Attack is Attack
    assert msbench.Defense is Defense


def test_other_names_are_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'msbench' has no attribute 'nonsense'"):
        _ = msbench.nonsense


# ------------------------------------------------------------------------------------------------------ sizes


def lengths() -> dict[str, int]:
    """Lines of every function and method of the package, decorators left out."""
    return {
        f"{relative(path)}:{node.name}:{node.lineno}": (node.end_lineno or node.lineno) - node.lineno + 1
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_functions_are_short() -> None:
    found = lengths()
    assert {name: lines for name, lines in found.items() if lines > 80} == {}
    assert median(found.values()) <= 12
    assert quantiles(found.values(), n=10)[-1] <= 45


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500
