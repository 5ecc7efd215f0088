"""The README says what is true: its pattern table, its names, its code."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

import attncheck

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_pattern_table_is_the_catalogue() -> None:
    table = README.split("<!-- patterns: begin")[1].split("<!-- patterns: end")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    assert rows == [
        f"| `{name}` | {entry.summary} | {entry.function} | {entry.requires} | {entry.source} |"
        for name, entry in attncheck.PATTERNS.items()
    ]


def test_every_public_function_is_mentioned() -> None:
    for name in attncheck.__all__:
        if re.match(r"(assert|plot|identify|classify|create|extract|profile|check)_", name):
            assert f"`{name}" in README, f"{name} is not in the README"


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(assert_\w+|plot_\w+)", README))))
def test_names_it_mentions_exist(name: str) -> None:
    assert callable(getattr(attncheck, name))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_its_code_is_code_and_calls_what_exists(page: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert blocks or page.stem == "report"
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "attncheck":
                assert hasattr(attncheck, node.attr), node.attr
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("attncheck"):
                module = import_module(str(node.module))
                assert all(hasattr(module, name.name) for name in node.names), ast.unparse(node)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_it_links_to_is_there(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        assert link.startswith("https://") or (page.parent / link).exists(), link


def test_it_leads_to_every_page() -> None:
    for page in PAGES[1:]:
        assert f"docs/{page.name}" in README, page.name


def test_it_names_every_option_of_the_plugin() -> None:
    source = Path(attncheck.__file__).parent / "pytest_plugin"
    options = set(
        re.findall(
            r'"(--attncheck-[a-z-]+)',
            "".join(path.read_text(encoding="utf-8") for path in source.glob("*.py")),
        )
    )
    assert options
    for option in options:
        assert option in README, option
