"""What the pages say exists: links, pictures, the names of files and functions, and the messages that are explained."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from support import REPOSITORY

COMPILER = REPOSITORY / "compile" / "lisiere_compile"
DEVICE = REPOSITORY / "device" / "lisiere"
NUCLEUS = REPOSITORY / "simulator" / "lisiere_sim" / "nucleus"
PICTURES = REPOSITORY / "docs" / "pictures"
PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CHANGELOG.md", "SECURITY.md")),
    *sorted((REPOSITORY / "docs").rglob("*.md")),
    *sorted((REPOSITORY / "models").rglob("*.md")),
]
OF_PYTHON = {"__init__.py", "__pycache__"}
SVG = "{http://www.w3.org/2000/svg}"


def title(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def section(page: Path, heading: str) -> str:
    """What stands under a heading of the second level."""
    return re.split(r"^## ", prose(page).partition(f"\n## {heading}\n")[2], flags=re.MULTILINE)[0]


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> Iterator[str]:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not re.match(r"[a-z]+:", target):
            yield target


def compiler_text() -> str:
    """The pages about the compiler, as far as they name its parts."""
    docs = REPOSITORY / "docs"
    pages = prose(docs / "compiler.md") + prose(docs / "kernels.md")
    return pages + section(docs / "ARCHITECTURE.md", "The compiler")


def sources() -> list[Path]:
    return sorted([*COMPILER.rglob("*.py"), *DEVICE.rglob("*.py")])


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{title(page)} links to {link}"
        if anchor:
            assert anchor in anchors(target), f"{title(page)} links to {link}, which has {sorted(anchors(target))}"


def test_the_readme_leads_to_every_page() -> None:
    readme = {(REPOSITORY / link.partition("#")[0]).resolve() for link in links(REPOSITORY / "README.md")}
    assert set((REPOSITORY / "docs").glob("*.md")) <= readme


@pytest.mark.parametrize("picture", sorted(PICTURES.iterdir()), ids=lambda picture: str(picture.name))
def test_pictures_are_whole_and_used(picture: Path) -> None:
    """Whole: with a background of their own, so that they can be read on a dark page, and nothing from elsewhere."""
    text = picture.read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)  # noqa: S314 - our own file
    size = {"width": root.get("width"), "height": root.get("height")}
    background = root.find(f"{SVG}rect")
    assert background is not None
    assert {name: background.get(name) for name in size} == size
    assert root.get("viewBox") == f"0 0 {size['width']} {size['height']}"
    assert root.findtext(f"{SVG}title")
    assert "href" not in text
    assert "@import" not in text
    assert any(f"pictures/{picture.name}" in links(page) for page in PAGES)


def test_files_that_the_compilers_pages_name_exist() -> None:
    roots = (REPOSITORY, COMPILER, DEVICE, NUCLEUS, COMPILER / "kernels")
    named = {name for name in re.findall(r"`([\w./]+)`", compiler_text()) if re.search(r"\.(py|c)$|/$", name)}
    assert len(named) > 30
    assert {name for name in named if not any((root / name).exists() for root in roots)} == set()


def test_the_architecture_names_every_part_of_the_laptop_nucleus() -> None:
    text = (REPOSITORY / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    text = text[text.index("## The laptop nucleus") : text.index("## What is promised")]
    named = set(re.findall(r"`([\w.]+/?)`", text))
    parts = {
        path.name if path.is_file() else f"{path.name}/" for path in NUCLEUS.iterdir() if path.name not in OF_PYTHON
    }
    assert parts <= named


def test_modules_in_the_pictures_exist() -> None:
    known = {file.name for file in COMPILER.rglob("*.py")}
    named = set(re.findall(r"\w+\.py", (PICTURES / "compiler-pipeline.svg").read_text(encoding="utf-8")))
    assert len(named) > 20
    assert named <= known


def test_names_of_code_in_the_compilers_page_exist() -> None:
    text = prose(REPOSITORY / "docs" / "compiler.md")
    how_to = text[text.index("## Add an operator") : text.index("## When something goes wrong")]
    named = {name for name in re.findall(r"`([A-Za-z_][\w.]*)`", how_to) if not name.endswith((".py", ".md"))}
    assert {"Maker", "Unfit", "own_converters", "Nest.packs", "schedule_one"} <= named
    words = set(re.findall(r"\w+", "\n".join(file.read_text(encoding="utf-8") for file in sources())))
    # The worked example is of an operator that is not taken yet.
    assert {name for name in named if name.rpartition(".")[2] not in words} <= {"QuickGelu"}


def test_the_architecture_names_every_part_of_the_compiler() -> None:
    parts = {file.name + "/" * file.is_dir() for file in COMPILER.iterdir() if not file.name.startswith(("__", "py."))}
    named = set(re.findall(r"`([\w./]+)`", section(REPOSITORY / "docs" / "ARCHITECTURE.md", "The compiler")))
    assert parts <= named


def said(node: ast.AST) -> str:
    """A string of the source, with `…` for what is filled in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(said(value) for value in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "…"


def test_messages_that_are_explained_are_those_that_are_said() -> None:
    strings = {
        said(node)
        for file in sources()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.JoinedStr | ast.Constant)
    }
    table = section(REPOSITORY / "docs" / "compiler.md", "When something goes wrong")
    explained = re.findall(r"^\| `([^`]+)` \|", table, flags=re.MULTILINE)
    assert len(explained) > 10
    for message in explained:
        part = message.removesuffix(" …")
        assert any(part in string for string in strings), f"Nothing says: {message}"
