"""The torchvision loader against a plain rendering of each view, its workers, its resuming, and files that turn bad."""

import gc
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from dgfast.data.batches import IMAGENET_MEAN, IMAGENET_STD, denormalise, erase, normalise
from dgfast.data.loaders.torchvision import TorchvisionPairLoader, evaluation_batches
from dgfast.data.pairs import PairSampler
from dgfast.data.records import Record
from dgfast.errors import UserError

SIZE, PAD = (32, 16), 3
PERSONS = [4] * 4 + [9] * 3 + [2] * 2 + [11]


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return make_records(tmp_path_factory.mktemp("images"))


def make_records(folder: Path) -> list[Record]:
    """Ten images of different sizes; one is grey, one has a palette."""
    rng = np.random.default_rng(0)
    found = []
    for i, person in enumerate(PERSONS):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 4, 3), dtype=np.uint8))
        image = coarse.resize((20 + i, 40 + 2 * i), Image.Resampling.BICUBIC)
        image = image.convert("L") if i == 1 else image.convert("P") if i == 2 else image
        path = folder / f"{i}.{'png' if i == 2 else 'jpg'}"
        image.save(path)
        found.append(Record(path, person, 1))
    return found


def sampler_of(records, batch=4, **options):
    return PairSampler([r.person for r in records], seed=3, batch=batch, image_size=SIZE, pad=PAD, **options)


def loader_of(records, workers=0, **options):
    return TorchvisionPairLoader(
        records, options.pop("sampler", None) or sampler_of(records), workers=workers, **options
    )


def assert_same(first, second):
    for name in ("image", "erased", "positive", "positive_erased", "label", "index"):
        assert torch.equal(getattr(first.a, name), getattr(second.a, name)), name
        assert torch.equal(getattr(first.b, name), getattr(second.b, name)), name


def rendered(path, view):
    """[H, W, 3] in 0 .. 255, by one step after another: mirror, resize, pad by the edge, crop."""
    image = Image.open(path).convert("RGB")
    image = ImageOps.mirror(image) if view.mirror else image
    image = np.asarray(image.resize((SIZE[1], SIZE[0]), Image.Resampling.BICUBIC), np.float64)
    padded = np.pad(image, ((PAD, PAD), (PAD, PAD), (0, 0)), mode="edge")
    return padded[view.top : view.top + SIZE[0], view.left : view.left + SIZE[1]]


def test_views_are_those_of_the_method(records):
    sampler, loader = sampler_of(records), loader_of(records)
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    seen = set()
    for iteration in range(12):
        batch = next(loader)
        for samples, stream in zip(sampler.batch(iteration), (batch.a, batch.b), strict=True):
            assert stream.index.tolist() == [s.image for s in samples]
            assert stream.label.tolist() == [[2, 4, 9, 11].index(PERSONS[s.image]) for s in samples]
            for n, s in enumerate(samples):
                for index, view, image, erased in (
                    (s.image, s.image_view, stream.image[n], stream.erased[n]),
                    (s.positive, s.positive_view, stream.positive[n], stream.positive_erased[n]),
                ):
                    plain = rendered(records[index].path, view).transpose(2, 0, 1) / 255
                    # Mirroring after the resize instead of before it may round another way: one step of 255.
                    tolerance = (1.01 / 255 if view.mirror else 1e-6) / std
                    assert (np.abs(image.numpy() - (plain - mean) / std) <= tolerance).all()
                    inside = torch.zeros(SIZE, dtype=torch.bool)
                    if view.erase:
                        top, left, height, width = view.erase
                        inside[top : top + height, left : left + width] = True
                    assert (erased[:, inside] == 0).all() and torch.equal(erased[:, ~inside], image[:, ~inside])
                    seen.add((view.mirror, view.erase is None))
    assert len(seen) == 4


def test_types_and_memory_format(records):
    batch = next(loader_of(records))
    for stream in (batch.a, batch.b):
        for images in (stream.image, stream.erased, stream.positive, stream.positive_erased):
            assert images.shape == (4, 3, *SIZE) and images.dtype == torch.float32
            assert images.is_contiguous(memory_format=torch.channels_last)
        assert stream.label.shape == stream.index.shape == (4,)
        assert stream.label.dtype == stream.index.dtype == torch.int64
    moved = batch.to("meta", non_blocking=True)
    assert moved.a.image.device.type == moved.b.index.device.type == "meta"


@pytest.mark.parametrize("options", [{"workers": 1}, {"workers": 2}, {"cache": "ram"}, {"cache": "ram", "workers": 2}])
def test_same_batches_however_they_are_made(records, options):
    expected, loader = loader_of(records), loader_of(records, **options)
    for _ in range(7):  # 28 samples a stream: almost three epochs
        assert_same(next(expected), next(loader))
    loader.close()


def test_two_ranks_see_what_one_sees(records):
    whole = loader_of(records)
    parts = [loader_of(records, sampler=sampler_of(records, batch=2, rank=r, world_size=2)) for r in range(2)]
    for _ in range(4):
        expected, found = next(whole), [next(part) for part in parts]
        assert torch.equal(expected.a.erased, torch.cat([batch.a.erased for batch in found]))
        assert torch.equal(expected.b.positive, torch.cat([batch.b.positive for batch in found]))


@pytest.mark.parametrize("options", [{"workers": 0}, {"workers": 2}, {"cache": "ram"}])
def test_resumes_at_the_next_undelivered_batch(records, options):
    loader, closed = loader_of(records, **options), loader_of(records, **options)
    for _ in range(3):
        next(loader)
        next(closed)
    following = [next(loader) for _ in range(2)]
    closed.close()  # although its workers have prepared more, nothing is lost
    resumed = loader_of(records, start_iteration=3, **options)
    for batch in following:
        assert_same(next(closed), batch)
        assert_same(next(resumed), batch)
    for each in (loader, closed, resumed):
        each.close()


def test_callers_random_state_is_left_alone(records):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    loader = loader_of(records, workers=1)
    next(loader)
    loader.close()
    list(evaluation_batches(records, SIZE, 4, workers=0))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("end", ["close", "release"])
def test_workers_end_with_the_loader(records, end):
    already = set(multiprocessing.active_children())
    loader = loader_of(records, workers=2)
    next(loader)
    workers = set(multiprocessing.active_children()) - already
    assert len(workers) == 2
    if end == "close":
        loader.close()
        loader.close()
    else:
        del loader
        gc.collect()
    assert not any(worker.is_alive() for worker in workers)


def test_workers_end_when_the_consumer_is_killed(tmp_path):
    script = (
        "import multiprocessing, os, sys; from pathlib import Path; import test_torchvision_loader as t\n"
        "import torch.utils.data._utils.worker as worker\n"
        "worker.MP_STATUS_CHECK_INTERVAL = 0.2  # instead of 5 s, between two looks whether the parent lives\n"
        "loader = t.loader_of(t.make_records(Path(sys.argv[1])), workers=2); next(loader)\n"
        "print(*(child.pid for child in multiprocessing.active_children()), flush=True); os.kill(os.getpid(), 9)"
    )
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    # Output goes to a file: a pipe would stay open, and be waited for, as long as a worker lives.
    with open(tmp_path / "pids", "w") as output:
        command = [sys.executable, "-c", script, str(tmp_path)]
        process = subprocess.run(command, env=environment, stdout=output, check=False)
    assert process.returncode == -signal.SIGKILL
    workers = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 30
    while any(is_running(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(is_running(pid) for pid in workers)


def is_running(pid: int) -> bool:
    """Whether the process exists and is not merely waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def broken(tmp_path):
    """Records of which number 0, one of four images of its identity, is a truncated file."""
    found = make_records(tmp_path)
    found[0].path.write_bytes(found[0].path.read_bytes()[:300])
    return found


@pytest.mark.parametrize("options", [{"workers": 0}, {"workers": 2}, {"cache": "ram"}])
def test_file_that_turns_bad_is_replaced_and_named_once(broken, options, caplog):
    mended = [Record(broken[1].path, 4, 1), *broken[1:]]  # the next image of the identity takes its place
    expected, loader = loader_of(mended), loader_of(broken, **options)
    with caplog.at_level(logging.WARNING, "dgfast"):
        for _ in range(6):
            assert_same(next(expected), next(loader))
    loader.close()
    assert list(loader.unreadable) == [broken[0].path]
    (warning,) = caplog.records
    assert str(broken[0].path) in warning.message and "truncated" in warning.message.lower()


@pytest.mark.parametrize("options", [{"workers": 0}, {"workers": 1}, {"cache": "ram"}])
def test_identity_without_a_readable_image(tmp_path, options):
    records = make_records(tmp_path)
    records[-1].path.unlink()  # the only image of person 11
    loader = loader_of(records, **options)
    with pytest.raises(UserError, match=r"9.jpg: neither it nor another image .*No such file") as raised:
        for _ in range(3):  # more than one epoch
            next(loader)
    loader.close()
    assert "Traceback" not in str(raised.value)


def test_arguments_that_do_not_fit(records):
    with pytest.raises(ValueError, match="9 records; expected the sampler's 10"):
        loader_of(records[:9], sampler=sampler_of(records))
    with pytest.raises(ValueError, match="cache 'disk'"):
        loader_of(records, cache="disk")


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_keeps_the_order_and_the_last_batch(records, workers):
    batches = list(evaluation_batches(records, SIZE, 4, workers=workers))
    assert [(images.shape[0], start) for images, start in batches] == [(4, 0), (4, 4), (2, 8)]
    for images, start in batches:
        assert images.is_contiguous(memory_format=torch.channels_last)
        for image, record in zip(denormalise(images), records[start:], strict=False):
            plain = Image.open(record.path).convert("RGB").resize((SIZE[1], SIZE[0]), Image.Resampling.BICUBIC)
            assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(plain))


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_needs_every_image(broken, workers):
    with pytest.raises(UserError, match=r"0.jpg cannot be read"):
        list(evaluation_batches(broken, SIZE, 4, workers=workers))


def test_normalise_and_back():
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(2, 16, 16, 3)
    images = normalise(values)
    assert torch.equal(denormalise(images), values.permute(0, 3, 1, 2))
    of_one = [(1 / 255 - mean) / std for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)]
    assert torch.allclose(images[0, :, 0, 1], torch.tensor(of_one))
    assert denormalise(images.new_tensor([-9.0, 9.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1)).unique().tolist() == [0, 255]


def test_erase_leaves_its_input_alone():
    images = torch.ones(2, 3, 4, 5)
    erased = erase(images, [None, (1, 2, 2, 3)])
    assert images.sum() == images.numel() and erased[0].sum() == 60 and erased[1].sum() == 60 - 3 * 6
    assert (erased[1, :, 1:3, 2:5] == 0).all()
