"""The tree in the README is the tree on the disk."""

import re

from tests.repo.repository import ROOT, tracked_files

TOLD_ELSEWHERE = {".ci"}


def described() -> set[str]:
    """The folders of the README's tree, as paths."""
    block = (ROOT / "README.md").read_text().split("## The tree")[1].split("##")[0]
    folders, parent = set(), ""
    for indent, name in re.findall(r"^ {4}( *)(\S+)/ ", block, re.MULTILINE):
        parent = parent if indent else name
        folders.add(f"{parent}/{name}" if indent else name)
    return folders


def real() -> set[str]:
    """Tracked folders at the top, and those of foretell/."""
    paths = [path.relative_to(ROOT).parts for path in tracked_files()]
    top = {parts[0] for parts in paths if len(parts) > 1}
    rooms = {f"foretell/{parts[1]}" for parts in paths if len(parts) > 2 and parts[0] == "foretell"}
    return (top | rooms) - TOLD_ELSEWHERE


def test_the_readme_has_a_line_for_every_folder_and_no_other():
    assert described() == real()
