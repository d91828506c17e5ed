"""Every link between the documents leads somewhere."""

import re
from pathlib import Path

import pytest

from tests.repo.repository import ROOT, tracked_files

DOCUMENTS = [p for p in tracked_files() if p.suffix == ".md"]


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_link_leads_to_a_file_and_a_heading(path):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(target)
    assert broken == []


def test_every_page_of_docs_can_be_reached_from_the_readme():
    readme = (ROOT / "README.md").read_text()
    assert [p.name for p in (ROOT / "docs").glob("*.md") if f"docs/{p.name}" not in readme] == []


def test_every_path_that_the_architecture_names_exists():
    named = re.findall(r"`([a-z]+/[a-z_0-9]+\.py)`", (ROOT / "ARCHITECTURE.md").read_text())
    missing = [n for n in named if not (ROOT / "foretell" / n).exists() and not (ROOT / n).exists()]
    assert named
    assert missing == []
