"""Files appear whole or not at all."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from dgfast.files import replacing, write_json, write_png, write_text


def test_a_file_takes_its_place_when_it_is_complete(tmp_path):
    target = tmp_path / "new" / "report.txt"
    with replacing(target) as partial:
        partial.write_text("whole")
        assert not target.exists() and partial.parent == target.parent and partial.name.startswith(".")
    assert target.read_text() == "whole"
    assert os.listdir(target.parent) == ["report.txt"]


def test_an_error_leaves_the_old_content_and_nothing_else(tmp_path):
    target = tmp_path / "report.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), replacing(target) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["report.txt"]


def test_an_interruption_cleans_up_too(tmp_path):
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "report.txt") as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_content_reaches_the_disk_before_the_name(tmp_path, monkeypatch):
    """The order of system calls is what survives a power cut."""
    calls = []
    sync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(os.readlink(f"/proc/self/fd/{fd}")), sync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("rename"), rename(a, b)))
    write_text("x", tmp_path / "a.txt")
    assert calls[0].endswith(".tmp") and calls[1] == "rename" and calls[2] == str(tmp_path)


def test_a_folder_takes_its_place_as_a_whole(tmp_path):
    target = tmp_path / "people"
    with replacing(target) as partial:
        partial.mkdir()
        (partial / "1.jpg").write_text("x")
    assert (target / "1.jpg").exists()
    with pytest.raises(RuntimeError), replacing(tmp_path / "others") as partial:
        partial.mkdir()
        (partial / "1.jpg").write_text("x")
        raise RuntimeError
    assert os.listdir(tmp_path) == ["people"]


def test_files_are_readable_as_the_umask_says(tmp_path):
    before = os.umask(0o022)
    try:
        write_json({"a": [1, None]}, tmp_path / "a.json")
    finally:
        os.umask(before)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o644
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, None]}


def test_pictures(tmp_path):
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    write_png(pixels, tmp_path / "a.png")
    assert (np.asarray(Image.open(tmp_path / "a.png")) == pixels).all()
