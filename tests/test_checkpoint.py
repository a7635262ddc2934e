"""Checkpoints and files of weights: no changed bit goes unnoticed, and the last good file is never removed."""

import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dgfast import checksums
from dgfast.errors import UserError
from dgfast.models.backbones import read_tensors
from dgfast.models.dgnet import load_model, make_teacher, save_model
from dgfast.training import checkpoint
from tests import tiny

STATE = {"networks": {"a": torch.arange(300.0), "b": torch.ones(3, 3)}, "global_batch": 2, "scaler": {}}


def flipped(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    torch.manual_seed(0)
    save_model(make_teacher(tiny.MODEL, 2), tiny.MODEL, 2, path)
    return path


def some_bits(size: int, all_of_the_first: int, number: int) -> list[int]:
    """Every bit of the first bytes, three of each of the last ones; some of the others."""
    chosen = set(range(8 * all_of_the_first)) | set(range(8 * (size - 120), 8 * size, 3))
    return sorted(chosen | set(random.Random(0).sample(range(8 * size), number)))


@pytest.mark.slow
def test_every_flipped_bit_of_a_checkpoint_is_found(tmp_path):
    path = checkpoint.save(tmp_path, "dgnet", 5, STATE)
    whole = path.read_bytes()
    assert checkpoint.read(path)["iteration"] == 5
    for bit in some_bits(len(whole), 8, 500):
        flipped(path, bit)
        with pytest.raises(Exception):  # noqa: B017 (Damaged; or torch's, where it is no archive any more)
            checkpoint.read(path)
        path.write_bytes(whole)


@pytest.mark.slow
def test_every_flipped_bit_of_a_model_is_found(teacher, tmp_path):
    path = tmp_path / "teacher.safetensors"
    whole = teacher.read_bytes()
    for bit in some_bits(len(whole), 16, 300):
        path.write_bytes(whole)
        flipped(path, bit)
        with pytest.raises(UserError):
            load_model(path, "teacher")


def test_a_shortened_or_longer_file_is_found(teacher, tmp_path):
    path = checkpoint.save(tmp_path, "dgnet", 5, STATE)
    for content in (path.read_bytes()[:-1], path.read_bytes() + b"\0", path.read_bytes()[:50], b""):
        path.write_bytes(content)
        with pytest.raises(Exception):  # noqa: B017
            checkpoint.read(path)
    copy = tmp_path / "teacher.safetensors"
    for content in (teacher.read_bytes()[:-1], teacher.read_bytes() + b"\0", teacher.read_bytes()[:50], b""):
        copy.write_bytes(content)
        with pytest.raises(UserError):
            load_model(copy, "teacher")


def test_a_flipped_bit_of_a_checkpoint_of_version_0_1_is_found(tmp_path):
    """It has no checksum of ours, but those of torch's archive."""
    path = tmp_path / "dgnet-00000005.pt"
    with path.open("wb") as file:
        torch.save({**STATE, "iteration": 5}, file)
    assert not checksums.verify(path) and checkpoint.read(path)["iteration"] == 5
    place = path.read_bytes().index(torch.arange(300.0).numpy().tobytes())
    flipped(path, 8 * (place + 100) + 3)
    with pytest.raises(checksums.Damaged):
        checkpoint.read(path)


def test_files_without_a_checksum_load(teacher, tmp_path):
    """Those of version 0.1, and users' own."""
    from safetensors import safe_open

    with safe_open(teacher, framework="pt") as file:
        metadata = {name: value for name, value in file.metadata().items() if name != "checksum"}
    old = tmp_path / "old.safetensors"
    save_file(load_file(teacher), old, {**metadata, "format": "dgfast-1"})
    assert torch.equal(load_model(old, "teacher").head.reduce.weight, load_model(teacher, "teacher").head.reduce.weight)
    own = tmp_path / "own.pth"
    torch.save(dict(load_file(teacher)), own)
    assert read_tensors(own).keys() == read_tensors(teacher).keys()


def test_other_programs_read_what_dgfast_writes(tmp_path, teacher):
    """The checksum is in a place that zip archives and .safetensors files have for such things."""
    import zipfile

    path = checkpoint.save(tmp_path, "dgnet", 5, STATE)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None and archive.comment.startswith(checksums.MARK)
    assert torch.equal(torch.load(path, weights_only=True, mmap=True)["networks"]["a"], STATE["networks"]["a"])
    assert load_file(teacher)


def test_equal_models_give_equal_bytes(tmp_path):
    model = make_teacher(tiny.MODEL, 2)
    for number in range(8):  # safetensors' own order of the metadata is drawn anew for each file
        save_model(model, tiny.MODEL, 2, tmp_path / str(number))
    assert len({(tmp_path / str(number)).read_bytes() for number in range(8)}) == 1


def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path, caplog):
    for iteration in (2, 4):
        checkpoint.save(tmp_path, "dgnet", iteration, STATE)
    newest = tmp_path / "dgnet-00000004.pt"
    flipped(newest, 8 * (newest.stat().st_size // 2))
    path, state = checkpoint.latest(tmp_path, "dgnet")
    assert path.name == "dgnet-00000002.pt" and state["iteration"] == 2
    assert "dgnet-00000004.pt cannot be read (its checksum does not fit" in caplog.text


@pytest.mark.parametrize("content", [[1, 2], torch.ones(2), 5, {}, {"iteration": "five"}, None])
def test_a_file_of_something_else_is_passed_over(tmp_path, caplog, content):
    checkpoint.save(tmp_path, "dgnet", 2, STATE)
    torch.save(content, tmp_path / "dgnet-00000004.pt")
    assert checkpoint.latest(tmp_path, "dgnet")[1]["iteration"] == 2
    (tmp_path / "dgnet-00000002.pt").unlink()
    with pytest.raises(UserError, match="none of which can be read"):
        checkpoint.latest(tmp_path, "dgnet")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def saved(writer: checkpoint.Writer, *iterations: int) -> None:
    for iteration in iterations:
        writer.save(iteration, STATE)
        writer.wait()


def test_what_was_put_back_by_hand_outlives_damaged_newer_files(tmp_path):
    """Both checkpoints were bad and the user puts back an older one: it and what follows are kept."""
    for number in (20, 30):
        (tmp_path / f"dgnet-{number:08d}.pt").write_bytes(b"bad")
    checkpoint.save(tmp_path, "dgnet", 10, STATE)
    path, _ = checkpoint.latest(tmp_path, "dgnet")
    writer = checkpoint.Writer(tmp_path, "dgnet", path)
    saved(writer, 12)
    assert names(tmp_path) == ["dgnet-00000010.pt", "dgnet-00000012.pt"]
    saved(writer, 14, 20)
    assert names(tmp_path) == ["dgnet-00000014.pt", "dgnet-00000020.pt"]
    assert checkpoint.latest(tmp_path, "dgnet")[1]["iteration"] == 20
    writer.close()


def test_a_damaged_checkpoint_does_not_count_among_the_two_that_are_kept(tmp_path):
    writer = checkpoint.Writer(tmp_path, "dgnet", None)
    saved(writer, 2, 4)
    flipped(tmp_path / "dgnet-00000004.pt", 8000)
    saved(writer, 6)
    assert names(tmp_path) == ["dgnet-00000002.pt", "dgnet-00000006.pt"]
    for number in (2, 6):
        flipped(tmp_path / f"dgnet-{number:08d}.pt", 8000)
    saved(writer, 8)  # the only sound one: nothing is removed beside it
    assert names(tmp_path) == [f"dgnet-{number:08d}.pt" for number in (2, 6, 8)]
    saved(writer, 10)
    assert names(tmp_path) == ["dgnet-00000008.pt", "dgnet-00000010.pt"]
    writer.close()


def test_a_stage_leaves_the_others_checkpoints_alone(tmp_path):
    shutil.copy(checkpoint.save(tmp_path, "dgnet", 2, STATE), tmp_path / "teacher-00000002.pt")
    writer = checkpoint.Writer(tmp_path, "dgnet", None)
    saved(writer, 4, 6, 8)
    assert names(tmp_path) == ["dgnet-00000006.pt", "dgnet-00000008.pt", "teacher-00000002.pt"]
    writer.close()
