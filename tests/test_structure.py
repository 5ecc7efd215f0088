"""The shape of the house: imports go down only, importing is light, files stay small."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "attncheck"

TIERS = (
    ("compiled", "errors", "kernels", "progress", "tolerances"),
    ("attention",),
    ("metrics",),
    ("patterns",),
    ("profile",),
    ("distributed",),
    ("evaluate",),
    ("models",),
    ("capture",),
    ("monitor",),
    ("benchmark", "checks"),
    ("strategies",),
    ("conformance", "model_checks"),
    ("plot", "regression"),
    ("report",),
    ("cli", "pytest_plugin"),
    ("demo",),
)
"""From the ground up; a part may import its own tier's modules only if they are its own."""

HEIGHT = {part: height for height, parts in enumerate(TIERS) for part in parts}
HEAVY = ("torch", "numpy", "matplotlib", "hypothesis", "scipy", "transformers", "safetensors")
ROOT = {
    *(".ci", ".gitignore", "Makefile", "README.md", "constraints.txt", "pyproject.toml"),
    *("attncheck", "benchmarks", "docs", "fixtures", "tests"),
}
"""All that belongs at the top of the repository; a test that writes there is noticed."""

ONLY_IN = {
    "matplotlib": {"plot"},
    "hypothesis": {"strategies", "conformance"},
    "numba": {"compiled"},
    "llvmlite": {"compiled"},
    "triton": {"kernels"},
    "pytest": {"pytest_plugin", "conformance", "model_checks"},
}


def part_of(path: Path) -> str:
    """Name the part of the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def sources() -> list[Path]:
    """Every module of the package but the lazy top, which names all parts as text."""
    return [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]


def imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    """Yield (module, line, at run time) for every import, also those inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    type_only: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            type_only |= {id(inner) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, id(node) not in type_only
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            if node.module == "attncheck":
                for alias in node.names:
                    yield f"attncheck.{alias.name}", node.lineno, id(node) not in type_only
            else:
                yield node.module or "", node.lineno, id(node) not in type_only


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path: Path) -> None:
    own = part_of(path)
    assert own in HEIGHT, f"{own} has no place in the tiers"
    for module, line, at_run_time in imports(path):
        top = module.split(".")[0]
        where = f"{path.relative_to(PACKAGE)}:{line}"
        if top == "attncheck":
            other = module.split(".")[1] if "." in module else ""
            if other in ("", "__version__"):
                continue
            assert other in HEIGHT, f"{where} imports {module} through the lazy top; name its part"
            lower = HEIGHT[other] < HEIGHT[own]
            assert other == own or lower, f"{where}: {own} must not import {other}"
        elif at_run_time and top in ONLY_IN:
            assert own in ONLY_IN[top], f"{where}: only {ONLY_IN[top]} may import {top}"


def test_the_tiers_can_fail() -> None:
    assert HEIGHT["patterns"] > HEIGHT["metrics"]
    assert {part_of(path) for path in sources()} <= set(HEIGHT)
    found = {module for module, _, _ in imports(PACKAGE / "attention" / "front_door.py")}
    assert {"numpy", "torch", "attncheck.attention.maps"} <= found


@pytest.mark.parametrize("module", ["attncheck", "attncheck.pytest_plugin", "attncheck.errors"])
def test_importing_is_light(module: str) -> None:
    code = (
        f"import sys, {module}; "
        f"print([name for name in {HEAVY!r} if name in sys.modules], dir({module})[:0])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[] []"


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["scan", "--help"], ["scan"]])
def test_reading_arguments_is_light(arguments: list[str]) -> None:
    code = (
        "import sys, attncheck.cli, attncheck.cli.__main__\n"
        f"try: attncheck.cli._parser().parse_args({arguments!r})\n"
        f"finally: print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "[]\n")


def test_every_public_name_loads() -> None:
    import attncheck

    for name in attncheck.__all__:
        assert getattr(attncheck, name) is not None
    assert set(attncheck.__all__) <= set(dir(attncheck))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        attncheck.nonsense  # noqa: B018


def test_every_public_name_is_documented_with_an_example() -> None:
    import inspect

    import attncheck

    for name in attncheck.__all__:
        thing = getattr(attncheck, name)
        if inspect.isfunction(thing) or inspect.isclass(thing):
            assert thing.__doc__, f"{name} has no docstring"
            assert ">>>" in thing.__doc__, f"{name} has no example"


def test_nothing_is_left_in_the_root() -> None:
    root = PACKAGE.parent
    if not (root / ".git").exists():
        pytest.skip("no checkout")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=root, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert {path.partition("/")[0] for path in listed} <= ROOT


def test_files_stay_small() -> None:
    root = PACKAGE.parent
    files = [*sources(), *(root / "tests").rglob("*.py")]
    sizes = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    large = {str(path.relative_to(root)): size for path, size in sizes.items() if size > 400}
    assert not large
