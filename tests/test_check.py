"""The check of images: what it finds, that it opens a file once only, that its cache may be lost or damaged."""

import io
import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dgfast.data.datasets.check as check_module
from dgfast.data.datasets.check import CheckedImages, check_images, default_cache_dir
from dgfast.data.loaders.image import read_image


@pytest.fixture
def images(tmp_path):
    """Ten sound files and five bad ones."""
    folder = tmp_path / "data"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (40, 20, 3), dtype=np.uint8)
    for i in range(10):
        Image.fromarray(noise[: 20 + 2 * i]).save(folder / f"{i}.jpg")
    whole = io.BytesIO()
    Image.fromarray(noise).save(whole, "jpeg")
    png = io.BytesIO()
    Image.fromarray(noise).save(png, "png")
    (folder / "truncated.jpg").write_bytes(whole.getvalue()[:-50])
    (folder / "truncated.png").write_bytes(png.getvalue()[:-50])
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("not an image")
    paths = [*sorted(folder.iterdir()), folder / "missing.jpg"]
    return paths


@pytest.fixture
def opened(monkeypatch):
    """The names of the files that are opened as images."""
    names = []

    def read(path: Path):
        names.append(path.name)
        return read_image(path)

    monkeypatch.setattr(check_module, "read_image", read)
    return names


def check(paths, cache):
    return check_images(paths, paths[0].parent, cache, progress=False)


def test_bad_files_are_found_and_named(images, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "dgfast"):
        found = check(images, tmp_path / "cache")
    reasons = {path.name: reason for path, reason in found.bad.items()}
    assert reasons.keys() == {"truncated.jpg", "truncated.png", "empty.jpg", "text.jpg", "missing.jpg"}
    assert reasons["empty.jpg"] == "the file is empty" and "truncated" in reasons["truncated.jpg"].lower()
    assert "cannot identify" in reasons["text.jpg"] and "No such file" in reasons["missing.jpg"]
    assert (found.smallest, found.largest) == ((20, 20), (38, 20))
    (warning,) = caplog.records
    assert "5 of 15 images cannot be read" in warning.message and "empty.jpg (the file is empty)" in warning.message
    assert "\n" not in warning.message


def test_images_of_one_colour_are_found_with_and_without_cache(images, tmp_path):
    flat = {images[0].with_name(f"flat{i}.png") for i in range(3)}
    for path, colour in zip(sorted(flat), ("black", "white", (10, 200, 30)), strict=True):
        Image.new("RGB", (20, 30), colour).save(path)
    faint = Image.new("RGB", (20, 30))
    faint.putpixel((3, 4), (10, 10, 10))
    faint.save(images[0].with_name("faint.png"))
    paths = [*images, *flat, images[0].with_name("faint.png")]
    for _ in range(2):
        found = check(paths, tmp_path / "cache")
        assert found.flat == flat and not flat & found.bad.keys()


def test_second_call_opens_nothing(images, tmp_path, opened):
    first = check(images, tmp_path / "cache")
    assert len(opened) == 15
    opened.clear()
    second = check(list(reversed(images)), tmp_path / "cache")
    assert opened == [] and second == first


def test_only_what_changed_is_opened(images, tmp_path, opened):
    check(images, tmp_path / "cache")
    opened.clear()
    stamp = images[0].stat()
    os.utime(images[0], ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    Image.new("RGB", (3, 3)).save(images[-1])  # the missing one appears
    found = check(images, tmp_path / "cache")
    assert sorted(opened) == [images[0].name, "missing.jpg"] and images[-1] not in found.bad


def test_parts_of_a_folder_share_a_cache(images, tmp_path, opened):
    check(images[:8], tmp_path / "cache")
    check(images[4:], tmp_path / "cache")
    opened.clear()
    check(images, tmp_path / "cache")
    assert opened == []


def test_cache_lies_outside_and_whole(images, tmp_path):
    before = sorted(images[0].parent.iterdir())
    check(images, tmp_path / "cache" / "deeper")
    assert sorted(images[0].parent.iterdir()) == before
    (file,) = (tmp_path / "cache" / "deeper").iterdir()  # no temporary file left
    assert json.loads(file.read_text())["root"] == str(images[0].parent)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 0, "root": "", "files": {}}', "null", "\udcff"])
def test_damaged_cache_is_made_anew(images, tmp_path, content):
    expected = check(images, tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(content.encode(errors="surrogateescape"))
    assert check(images, tmp_path / "cache") == expected


def test_failed_write_keeps_the_old_cache(images, tmp_path, monkeypatch, caplog, opened):
    check(images[:3], tmp_path / "cache")
    opened.clear()
    (file,) = (tmp_path / "cache").iterdir()
    before = file.read_bytes()

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with caplog.at_level(logging.WARNING, "dgfast"):
        check(images[:10], tmp_path / "cache")
    assert len(opened) == 7 and "No space left" in caplog.text
    assert [entry.read_bytes() for entry in (tmp_path / "cache").iterdir()] == [before]


def test_cache_that_cannot_be_made(images, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file is in the way")
    with caplog.at_level(logging.WARNING, "dgfast"):
        assert not check(images[:3], tmp_path / "cache").bad
    assert "will be checked again" in caplog.text


def test_no_images(tmp_path):
    assert check_images([], tmp_path, tmp_path / "cache") == CheckedImages({}, frozenset(), None, None)


def test_default_cache_dir():
    assert default_cache_dir({"XDG_CACHE_HOME": "/somewhere"}) == Path("/somewhere/dgfast")
    assert default_cache_dir({}) == Path.home() / ".cache" / "dgfast"
