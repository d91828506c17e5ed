"""The store: versions count up and never change, aliases move by compare-and-set, nothing is half-registered."""

import errno
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from foretell.core.errors import ConfigError, Conflict, InvalidInput, NotFound, PackageError
from foretell.core.reference import Reference, parse_reference
from foretell.store.blobs import Blobs
from foretell.store.package import Package
from foretell.store.store import Store
from tests.store.conftest import BACKENDS
from tests.store.packages import write_package


def add(store: Store, tmp_path: Path, name: str, content: bytes) -> int:
    return store.add(name, write_package(tmp_path / "prepared", content)).number


def resolve(store: Store, text: str) -> int:
    return store.resolve(parse_reference(text)).number


def test_the_store_is_tested_on_every_backend():
    assert {name.split(",")[0] for name in BACKENDS} == {"sqlite", "postgresql"}
    assert {name.split(", ")[1] for name in BACKENDS} == {"local files", "memory files"}


def test_versions_count_from_one(store: Store, tmp_path: Path):
    assert [add(store, tmp_path, "m", content) for content in (b"a", b"b", b"c")] == [1, 2, 3]
    assert add(store, tmp_path, "other", b"a") == 1
    assert store.names() == ["m", "other"]
    assert [info.number for info in store.versions("m")] == [1, 2, 3]


def test_a_version_is_fetched_as_it_was_added(open_store: Callable[[], Store], tmp_path: Path):
    info = open_store().add("m", write_package(tmp_path / "prepared", b"abc"))
    package = open_store().fetch(info)
    assert package.artifact.read_bytes() == b"abc"
    assert package.digest == info.digest == Package.open(tmp_path / "prepared").digest
    assert package.manifest.package.name == "m"
    assert info.runtime == "onnx" and info.created.endswith("+00:00")


def test_adding_does_not_touch_the_prepared_folder(store: Store, tmp_path: Path):
    folder = write_package(tmp_path / "prepared")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    store.add("m", folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_adding_the_newest_contents_again_changes_nothing(store: Store, tmp_path: Path):
    folder = write_package(tmp_path / "prepared")
    first = store.add("m", folder)
    again = store.add("m", folder)
    assert not first.unchanged and again.unchanged
    assert again.number == first.number == 1
    assert len(store.versions("m")) == 1


def test_going_back_to_older_contents_is_a_new_version(store: Store, tmp_path: Path):
    assert [add(store, tmp_path, "m", content) for content in (b"a", b"b", b"a")] == [1, 2, 3]


def test_a_name_that_cannot_be_one_is_refused(store: Store, tmp_path: Path):
    for name in ("", "../m", "a/b", "m@1", ".staging"):
        with pytest.raises(InvalidInput):
            add(store, tmp_path, name, b"a")


def test_the_default_is_the_newest_until_live_says_otherwise(store: Store, tmp_path: Path):
    for content in (b"a", b"b", b"c"):
        add(store, tmp_path, "m", content)
    assert resolve(store, "m") == 3
    store.set_alias("m", "live", 2)
    assert resolve(store, "m") == resolve(store, "m@live") == 2
    assert resolve(store, "m@3") == 3


@pytest.mark.parametrize(
    ("reference", "hint"),
    [("digit", "digits"), ("digits@7", "Known: .*1"), ("digits@liv", '"live"'), ("digits@candidate", "live")],
)
def test_an_unknown_reference_is_answered_with_what_there_is(store: Store, tmp_path: Path, reference: str, hint: str):
    add(store, tmp_path, "digits", b"a")
    store.set_alias("digits", "live", 1)
    with pytest.raises(NotFound, match=hint):
        store.resolve(parse_reference(reference))


def test_an_empty_store_says_so(store: Store):
    assert store.names() == []
    with pytest.raises(NotFound, match="There are none"):
        store.versions("m")


def test_an_alias_moves_only_from_the_value_that_was_expected(store: Store, tmp_path: Path):
    for content in (b"a", b"b"):
        add(store, tmp_path, "m", content)
    store.set_alias("m", "live", 1, expected=None)
    with pytest.raises(Conflict, match="is version 1, not unset"):
        store.set_alias("m", "live", 2, expected=None)
    with pytest.raises(Conflict, match="is version 1, not version 2"):
        store.set_alias("m", "live", 2, expected=2)
    store.set_alias("m", "live", 2, expected=1)
    store.set_alias("m", "live", 1)
    assert store.aliases("m") == {"live": 1}


def test_every_move_of_an_alias_is_in_the_history(store: Store, tmp_path: Path):
    for content in (b"a", b"b"):
        add(store, tmp_path, "m", content)
    store.set_alias("m", "live", 1)
    store.set_alias("m", "live", 1)
    store.set_alias("m", "live", 2)
    store.remove_alias("m", "live", expected=2)
    moves = [(change.alias, change.before, change.after) for change in store.alias_history("m")]
    assert moves == [("live", None, 1), ("live", 1, 2), ("live", 2, None)]
    assert store.aliases("m") == {}


def test_an_alias_needs_a_version_that_exists_and_a_name_that_is_no_number(store: Store, tmp_path: Path):
    add(store, tmp_path, "m", b"a")
    with pytest.raises(NotFound, match="no version 2"):
        store.set_alias("m", "live", 2)
    with pytest.raises(InvalidInput, match="means version 3"):
        store.set_alias("m", "3", 1)
    with pytest.raises(NotFound, match="no alias"):
        store.remove_alias("m", "live")


def test_a_version_that_an_alias_means_is_removed_only_by_force(store: Store, tmp_path: Path):
    for content in (b"a", b"b"):
        add(store, tmp_path, "m", content)
    store.set_alias("m", "live", 1)
    with pytest.raises(Conflict, match="m@live"):
        store.remove(Reference("m", "1"))
    store.remove(Reference("m", "1"), force=True)
    assert [info.number for info in store.versions("m")] == [2]
    assert store.aliases("m") == {}
    assert store.alias_history("m")[-1].after is None


def test_the_number_of_a_removed_version_is_not_given_again(store: Store, tmp_path: Path):
    add(store, tmp_path, "m", b"a")
    removed = store.remove(Reference("m"))
    assert store.names() == []
    assert add(store, tmp_path, "m", b"b") == 2
    with pytest.raises(NotFound):
        store.fetch(removed)


def test_the_change_token_differs_after_every_write_and_only_then(store: Store, tmp_path: Path):
    tokens = [store.change_token()]
    add(store, tmp_path, "m", b"a")
    tokens.append(store.change_token())
    store.set_alias("m", "live", 1)
    tokens.append(store.change_token())
    store.remove(Reference("m"), force=True)
    tokens.append(store.change_token())
    assert len(set(tokens)) == 4
    assert store.change_token() == tokens[-1]


def test_leavings_of_an_interrupted_add_do_not_stand_in_the_way(
    open_store: Callable[[], Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = open_store()
    write_package(tmp_path / "old", b"half")
    store._blobs.upload(tmp_path / "old", ["model.onnx"], "packages/m/1")
    stale, fresh = int(time.time()) - 90000, int(time.time()) - 60
    for started in (stale, fresh):
        store._blobs.write(f"packages/.staging-{started}-abc/model.onnx", b"half")
    assert store.names() == []
    info = store.add("m", write_package(tmp_path / "new", b"whole"))
    assert info.number == 1 and store.fetch(info).artifact.read_bytes() == b"whole"
    assert store._blobs.names("packages") == [f".staging-{fresh}-abc", "m"]


class Failing(Blobs):
    """Raises when the step of its choice is done."""

    step = "upload"

    def fail(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def upload(self, folder, names, target):
        super().upload(folder, names, target)
        if self.step == "upload":
            self.fail()

    def write(self, path, content):
        super().write(path, content)
        if self.step == "write":
            self.fail()

    def move(self, source, target):
        if self.step == "move":
            self.fail()
        super().move(source, target)


@pytest.mark.parametrize("step", ["upload", "write", "move"])
def test_a_full_disk_while_adding_leaves_nothing(store: Store, tmp_path: Path, step: str):
    whole = store._blobs
    store._blobs = failing = Failing(whole._fs, whole._root)
    failing.step = step
    with pytest.raises(PackageError, match="No space left"):
        add(store, tmp_path, "m", b"a")
    store._blobs = whole
    assert store.names() == []
    assert [name for name in whole.names("packages") if name != "m"] == []
    assert whole.names("packages/m") == []
    assert add(store, tmp_path, "m", b"a") == 1


def test_a_failing_insert_leaves_nothing(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with store._database.write("m") as connection:
        connection.execute(sa.text("INSERT INTO models (name, last_number) VALUES ('m', 0)"))
        connection.execute(
            sa.text("INSERT INTO versions (name, number, digest, runtime, created) VALUES ('m', 1, '', '', '')")
        )
    with pytest.raises(sa.exc.IntegrityError):
        add(store, tmp_path, "m", b"a")
    assert store._blobs.names("packages/m") == []


def test_a_damaged_version_is_refused_and_the_file_named(open_store: Callable[[], Store], tmp_path: Path):
    info = open_store().add("m", write_package(tmp_path / "prepared", b"abc"))
    open_store()._blobs.write("packages/m/1/model.onnx", b"abd")
    with pytest.raises(PackageError, match=r"model\.onnx"):
        open_store().fetch(info)


def test_a_version_resealed_after_tampering_is_refused_by_its_registered_digest(tmp_path: Path):
    with Store.open(tmp_path / "store") as store:
        info = store.add("m", write_package(tmp_path / "prepared", b"abc"))
        folder = tmp_path / "store/packages/m/1"
        (folder / "model.onnx").write_bytes(b"evil")
        (folder / "digest.json").unlink()
        with pytest.raises(PackageError, match="registered was"):
            store.fetch(info)


def test_a_damaged_package_is_not_added(store: Store, tmp_path: Path):
    folder = write_package(tmp_path / "prepared")
    (folder / "model.onnx").unlink()
    with pytest.raises(PackageError, match="artifact"):
        store.add("m", folder)
    assert store.names() == []


def test_a_remote_package_is_downloaded_once(tmp_path: Path):
    database = f"sqlite:///{tmp_path / 'db'}"
    with Store.open(f"memory://{tmp_path.name}-once", database, cache=tmp_path / "cache") as store:
        info = store.add("m", write_package(tmp_path / "prepared", b"abc"))
        folder = store.fetch(info).path
    assert folder == tmp_path / "cache" / info.digest
    with Store.open(f"memory://{tmp_path.name}-once", database, cache=tmp_path / "cache") as store:
        store._blobs.remove("packages/m/1")
        assert store.fetch(info).artifact.read_bytes() == b"abc"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [info.digest]


def test_a_remote_store_needs_a_database():
    with pytest.raises(ConfigError, match="remote"):
        Store.open("memory://somewhere")


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("mysql://host/name", "not supported"),
        ("nonsense", "not a database URL"),
        ("postgresql://nobody@127.0.0.1:1/none", "cannot open the database"),
        ("sqlite:////nowhere/at/all/db", "cannot open the database"),
    ],
)
def test_a_bad_database_url_is_named(tmp_path: Path, url: str, hint: str):
    with pytest.raises(ConfigError, match=hint):
        Store.open(tmp_path / "store", url)


def test_a_password_is_not_shown_in_errors(tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        Store.open(tmp_path / "store", "postgresql://me:secret@127.0.0.1:1/none")
    assert "secret" not in caught.value.message


def test_an_unknown_filesystem_is_named():
    with pytest.raises(ConfigError, match="nosuch"):
        Store.open("nosuch://bucket", "sqlite://")


def test_a_database_of_a_newer_foretell_is_refused(open_store: Callable[[], Store]):
    store = open_store()
    with store._database.write("m") as connection:
        connection.execute(sa.text("UPDATE schema_version SET version = 99"))
    with pytest.raises(ConfigError, match="Upgrade foretell"):
        open_store()
