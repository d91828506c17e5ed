"""What a model is called that is served from a file or a folder."""

from pathlib import Path

import pytest

from foretell.app.packages import name_of


def test_a_file_is_called_by_its_stem_and_a_folder_by_its_name(tmp_path, monkeypatch):
    (tmp_path / "my models").mkdir()
    assert name_of(tmp_path / "net.v2.onnx") == "net.v2"
    assert name_of(tmp_path / "my models") == "my-models"
    monkeypatch.chdir(tmp_path / "my models")
    assert name_of(Path()) == name_of(Path("../my models")) == "my-models"


def test_a_link_is_called_as_it_is_called(tmp_path):
    (tmp_path / "weights-Q4_1.gguf").touch()
    link = tmp_path / "small.gguf"
    try:
        link.symlink_to("weights-Q4_1.gguf")
    except OSError:
        pytest.skip("this system makes no links")
    assert name_of(link) == "small"
