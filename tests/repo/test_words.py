"""Nothing that is tracked depends on one machine: no registry's address, no path of somebody's disk."""

from tests.repo.repository import tracked_files

# Written in halves, so that this file does not hold what it forbids.
FORBIDDEN = [
    "pypi" + ".org",
    "python" + "hosted",
    "npm" + "js.org",
    "deb." + "debian.org",
    "index-" + "url",
    "/wo" + "rk/",
    "/ro" + "ot/",
    "/opt/" + "pypi",
    "/opt/" + "wheels",
    "/tmp/" + "exp",
]


def test_no_tracked_file_names_a_registry_or_a_machine():
    found = []
    for path in tracked_files():
        text = path.read_bytes().decode("utf-8", "ignore")
        found += [f"{path}: {word}" for word in FORBIDDEN if word in text]
    assert found == []
