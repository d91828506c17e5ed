"""Files of clients: a row makes one exist, its contents lie in a folder."""

import pytest

from foretell.core.errors import ConfigError, NotFound, NotReady
from foretell.store.store import Store


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "home") as store:
        yield store


def test_a_file_is_kept_listed_and_removed(store, tmp_path):
    old, new = (store.files.add(name, "batch", b"abc", at) for name, at in (("old", 1.0), ("new", 2.0)))
    assert (old.filename, old.purpose, old.size, old.created) == ("old", "batch", 3, 1.0)
    assert store.files.get(old.id) == old
    assert store.files.all() == [new, old]
    assert store.files.path(old.id).read_bytes() == b"abc"
    with Store.open(tmp_path / "home") as another:
        assert another.files.all() == [new, old]
    store.files.remove(old.id)
    assert store.files.all() == [new]
    assert [path.name for path in store.files.folder.iterdir()] == [new.id]
    with pytest.raises(NotFound, match="deleted"):
        store.files.remove(old.id)


def test_no_name_leads_out_of_the_folder(store):
    store.files.add("a", "batch", b"x", 1.0)
    for name in ("../foretell.db", "", ".", "%"):
        with pytest.raises(NotFound):
            store.files.path(name)


def test_what_is_made_twice_is_there_once(store, tmp_path):
    for content in (b"first", b"second"):
        (tmp_path / "made").write_bytes(content)
        store.files.adopt("file-1", "made.jsonl", "batch_output", tmp_path / "made", 1.0)
    (info,) = store.files.all()
    assert info.size == 6
    assert store.files.path("file-1").read_bytes() == b"second"


def test_contents_that_are_gone_are_said_to_be(store):
    info = store.files.add("a", "batch", b"x", 1.0)
    (store.files.folder / info.id).unlink()
    with pytest.raises(NotFound, match="not on this machine"):
        store.files.path(info.id)


def test_a_disk_that_takes_nothing_keeps_nothing_and_says_so(store):
    store.files.folder.write_text("a file where the folder should be")
    with pytest.raises(NotReady, match="a was not kept"):
        store.files.add("a", "batch", b"x", 1.0)
    assert store.files.all() == []


def test_a_remote_store_keeps_files_where_it_is_told(tmp_path):
    database = f"sqlite:///{tmp_path}/db"
    with Store.open("memory://somewhere", database) as store:
        assert store.files.folder is None
        with pytest.raises(ConfigError, match="files"):
            store.files.add("a", "batch", b"x", 1.0)
    with Store.open("memory://somewhere", database, files=tmp_path / "here") as store:
        info = store.files.add("a", "batch", b"x", 1.0)
        assert (tmp_path / "here" / info.id).read_bytes() == b"x"
