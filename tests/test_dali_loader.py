"""DALI's loader against the torchvision one: samples, pictures, resuming, ranks, damaged files, nothing left behind."""

import gc
import io
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

dali = pytest.importorskip("dgfast.data.loaders.dali", exc_type=ImportError)

from dgfast.data.batches import denormalise  # noqa: E402
from dgfast.data.loaders import choose as choose_module  # noqa: E402
from dgfast.data.loaders import encoded, torchvision  # noqa: E402
from dgfast.data.loaders.dali import DaliPairLoader  # noqa: E402
from dgfast.data.loaders.torchvision import TorchvisionPairLoader  # noqa: E402
from dgfast.data.pairs import PairSampler  # noqa: E402
from dgfast.data.records import Record  # noqa: E402
from dgfast.errors import UserError  # noqa: E402
from dgfast.pedestrians import generate  # noqa: E402
from tests.test_torchvision_loader import SIZE, assert_same, is_running, make_records, sampler_of  # noqa: E402

LOADERS = {"dali": DaliPairLoader, "torchvision": TorchvisionPairLoader}
both_loaders = pytest.mark.parametrize("loader", list(LOADERS))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return make_records(tmp_path_factory.mktemp("images"))


@pytest.fixture
def own(tmp_path):
    """Records that a test may damage."""
    return make_records(tmp_path)


def loader_of(records, kind="dali", **options):
    sampler = options.pop("sampler", None) or sampler_of(records)
    return LOADERS[kind](records, sampler, **{"workers": 1 if kind == "dali" else 0, **options})


def difference(first, second):
    """Of two normalised image tensors, in steps of 255: absolute, float."""
    return (denormalise(first).float() - denormalise(second).float()).abs()


@pytest.fixture(scope="module")
def pedestrians(tmp_path_factory):
    """200 pictures of synthetic pedestrians, a third each of 128x64, smaller, and larger than the loaders' 256x128."""
    root = tmp_path_factory.mktemp("pedestrians") / "set"
    generate(root, identities=6, size=(128, 64), images_per_camera=3, masks=False, workers=1, progress=False)
    files = sorted(root.glob("bounding_box_*/*.jpg"))
    rng = np.random.default_rng(0)
    records = []
    for place in range(200):
        low, high = (((64, 65), (128, 129)), ((24, 64), (64, 128)), ((128, 320), (256, 640)))[place % 3]
        size = int(rng.integers(*low)), int(rng.integers(*high))
        records.append(Record(root / f"{place}.jpg", place // 4, 1))
        Image.open(files[place % len(files)]).resize(size, Image.Resampling.BICUBIC).save(records[-1].path, quality=90)
    return records


def test_pictures_are_torchvisions_up_to_rounding(pedestrians):
    """All 200 images in both streams, mirrored, cropped and erased at random; docs/loading.md states these figures."""
    sampler = PairSampler([r.person for r in pedestrians], seed=1, batch=10)
    batches = [loader_of(pedestrians, kind, sampler=sampler) for kind in LOADERS]
    means, largest, seen = [], [], set()
    for _ in range(20):
        ours, theirs = map(next, batches)
        for a, b in ((ours.a, theirs.a), (ours.b, theirs.b)):
            assert torch.equal(a.label, b.label) and torch.equal(a.index, b.index)
            seen |= set(a.index.tolist())
            for name in ("image", "positive"):
                off = difference(getattr(a, name), getattr(b, name))
                means += off.mean((1, 2, 3)).tolist()
                largest.append(off.max().item())
                # Where one is erased, so is the other, exactly; no other pixel is 0, since the mean is no multiple of
                # 1/255.
                erased_a, erased_b = (getattr(x, "erased" if name == "image" else "positive_erased") for x in (a, b))
                assert torch.equal(erased_a == 0, erased_b == 0) and (erased_a == 0).any()
    assert len(seen) == 200
    print(f"mean {np.mean(means):.3f}, worst image's mean {max(means):.3f}, largest {max(largest):.0f} of 255")
    assert max(means) < 1 and max(largest) <= 24


def test_images_of_the_final_size_are_the_same_bits(tmp_path):
    rng = np.random.default_rng(0)
    same_size = []
    for place in range(6):
        path = tmp_path / f"{place}.jpg"
        Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(path)
        same_size.append(Record(path, place // 2, 1))
    ours, theirs = (loader_of(same_size, kind) for kind in LOADERS)
    for _ in range(10):
        assert_same(next(ours), next(theirs))


def test_types_and_memory_format(records):
    batch = next(loader_of(records))
    for stream in (batch.a, batch.b):
        for images in (stream.image, stream.erased, stream.positive, stream.positive_erased):
            assert images.shape == (4, 3, *SIZE) and images.dtype == torch.float32
            assert images.is_contiguous(memory_format=torch.channels_last)
        assert stream.label.dtype == stream.index.dtype == torch.int64


def test_batches_stay_as_they_are_while_others_are_made(records):
    loader = loader_of(records)
    kept = next(loader)
    copy = [x.clone() for x in (kept.a.image, kept.a.erased, kept.b.positive)]
    for _ in range(8):
        next(loader)
    loader.close()
    assert all(torch.equal(x, y) for x, y in zip(copy, (kept.a.image, kept.a.erased, kept.b.positive), strict=True))


@pytest.mark.parametrize("options", [{"workers": 3}, {"cache": "ram"}, {"prefetch": 1}, {"prefetch": 5}])
def test_same_batches_however_they_are_made(records, options):
    expected, loader = loader_of(records), loader_of(records, **options)
    for _ in range(7):  # 28 samples a stream: almost three epochs
        assert_same(next(expected), next(loader))


@both_loaders
def test_two_ranks_cover_an_epoch_exactly(records, loader):
    """Ten images, two ranks of two: five batches of each are two epochs, every image once in each."""
    whole = loader_of(records, loader)
    ranks = [loader_of(records, loader, sampler=sampler_of(records, batch=2, rank=r, world_size=2)) for r in range(2)]
    order = {"a": [], "b": []}
    for _ in range(5):
        expected, found = next(whole), [next(rank) for rank in ranks]
        for stream, seen in order.items():
            parts = [getattr(batch, stream) for batch in found]
            seen += torch.cat([part.index for part in parts]).tolist()
            for name in ("image", "erased", "positive", "positive_erased", "label"):
                assert torch.equal(
                    getattr(getattr(expected, stream), name), torch.cat([getattr(p, name) for p in parts])
                )
    for seen in order.values():
        assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10)) and seen[:10] != seen[10:]


@both_loaders
def test_resumes_mid_epoch(records, loader):
    straight = loader_of(records, loader)
    for _ in range(3):
        next(straight)
    resumed = loader_of(records, loader, start_iteration=3)
    for _ in range(4):
        assert_same(next(resumed), next(straight))
    straight.close()
    assert_same(next(straight), next(resumed))  # closing loses nothing


def test_resumes_with_the_samples_of_the_other_loader(records):
    """Pictures differ by rounding; which images are shown, and what is erased in them, does not."""
    stopped = loader_of(records, "torchvision")
    for _ in range(3):
        next(stopped)
    expected, found = next(stopped), next(loader_of(records, "dali", start_iteration=3))
    for right, stream in ((expected.a, found.a), (expected.b, found.b)):
        assert torch.equal(stream.index, right.index) and torch.equal(stream.label, right.label)
        assert torch.equal(stream.erased == 0, right.erased == 0)


@both_loaders
def test_another_number_of_ranks_goes_on_with_the_same_samples(records, loader):
    """Three batches of two ranks of two, then four ranks of one: together they show what one rank of four shows."""
    whole = loader_of(records, loader, start_iteration=3)
    four = [
        loader_of(records, loader, sampler=sampler_of(records, batch=1, rank=r, world_size=4), start_iteration=3)
        for r in range(4)
    ]
    expected, found = next(whole).a, [next(rank).a for rank in four]
    assert torch.equal(torch.cat([part.index for part in found]), expected.index)
    assert torch.equal(torch.cat([part.erased for part in found]), expected.erased)


def jpeg(image, **options):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90, **options)
    return file.getvalue()


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def picture(mode="RGB"):
    coarse = np.random.default_rng(7).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((24, 48), Image.Resampling.BICUBIC).convert(mode)


def without(data: bytes, marker: int) -> bytes:
    """A JPEG file without its segments of one kind."""
    while (at := data.find(bytes([0xFF, marker]))) >= 0:
        data = data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]
    return data


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: to be shown, the picture turns right by a quarter
    return jpeg(picture().transpose(Image.Transpose.ROTATE_90), exif=exif)


DAMAGED = {
    "truncated": lambda: jpeg(picture())[:500],
    "truncated progressive": lambda: jpeg(picture(), progressive=True)[:-40],
    "zeros at the end": lambda: jpeg(picture())[:-300] + bytes(300),
    "no quantisation tables": lambda: without(jpeg(picture()), 0xDB),  # its structure looks sound
    "empty": lambda: b"",
    "no image": lambda: b"<html>404</html>" * 50,
    "truncated PNG": lambda: png(picture())[:-60],
    "flipped bit in a PNG": lambda: (lambda data: data[:200] + bytes([data[200] ^ 4]) + data[201:])(png(picture())),
    "missing": lambda: None,
}


@both_loaders
@pytest.mark.parametrize("cache", ["ram", "none"])
def test_damaged_files_are_replaced_and_named_once(own, loader, cache, caplog):
    """Every kind of damage, each in the first image of the first identity, which has four."""
    healthy = [Record(own[1].path, own[0].person, 1), *own[1:]]  # the next image of the identity takes its place
    right = loader_of(healthy, loader)
    expected = [next(right) for _ in range(5)]
    for name, content in DAMAGED.items():
        own[0].path.unlink(missing_ok=True)
        if (data := content()) is not None:
            own[0].path.write_bytes(data)
        caplog.clear()
        broken = loader_of(own, loader, cache=cache)
        with caplog.at_level(logging.WARNING, "dgfast"):
            for batch in expected:
                assert_same(next(broken), batch)
        broken.close()
        assert list(broken.unreadable) == [own[0].path], name
        (warning,) = caplog.records
        assert str(own[0].path) in warning.message and "so far: 1" in warning.message


def test_file_that_turns_bad_under_way(own, caplog):
    """Batches that were prepared before the damage are delivered as they are, so the loop goes on for longer."""
    expected, loader = loader_of(own), loader_of(own)
    for _ in range(2):
        assert_same(next(expected), next(loader))
    expected.close()
    for record in own[:3]:
        record.path.write_bytes(record.path.read_bytes()[:300])
    for _ in range(12):
        next(loader)
    assert set(loader.unreadable) == {record.path for record in own[:3]}


def test_what_dali_alone_cannot_decode_is_left_to_pillow(own, monkeypatch, caplog):
    """If GIF were taken for an ordinary file, DALI would fail and a new pipeline go on at the same iteration."""
    honest = encoded._is_ordinary
    picture("P").save(own[0].path, "GIF")
    expected = [next(batches) for batches in [loader_of(own)] for _ in range(5)]
    monkeypatch.setattr(encoded, "_is_ordinary", lambda data: data.startswith(b"GIF") or honest(data))
    for cache in ("ram", "none"):
        loader = loader_of(own, cache=cache)
        for batch in expected:
            assert_same(next(loader), batch)
        assert not loader.unreadable


def test_an_error_that_no_image_causes_is_raised(records, monkeypatch):
    loader = loader_of(records)
    next(loader)
    monkeypatch.setattr(dali._Running, "__next__", lambda self: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(RuntimeError, match="out of memory"):
        next(loader)


@both_loaders
def test_identity_without_a_readable_image(own, loader):
    own[-1].path.unlink()  # the only image of person 11
    batches = loader_of(own, loader)
    with pytest.raises(UserError, match=r"9.jpg: neither it nor another image .*No such file"):
        for _ in range(3):
            next(batches)


GREY16 = np.linspace(0, 65535, 48 * 24).reshape(48, 24).astype(np.uint16)
UNUSUAL = {  # file -> what it shows, as RGB
    "CMYK": (lambda: jpeg(picture("CMYK")), None),
    "grey": (lambda: jpeg(picture("L")), None),
    "progressive": (lambda: jpeg(picture(), progressive=True), None),
    "RGB JPEG": (lambda: jpeg(picture(), keep_rgb=True), None),
    "16-bit PNG": (
        lambda: png(Image.fromarray(GREY16)),
        lambda: Image.fromarray((GREY16 >> 8).astype(np.uint8)).convert("RGB"),
    ),
    "palette PNG": (lambda: png(picture("P")), None),
    "transparent PNG": (lambda: png(picture("RGBA")), None),
    "EXIF rotated": (rotated, lambda: Image.open(io.BytesIO(rotated())).transpose(Image.Transpose.ROTATE_270)),
    "no end marker, then rubbish": (lambda: jpeg(picture()) + bytes(9), None),
    "1x1": (lambda: jpeg(Image.new("RGB", (1, 1), (200, 30, 60))), None),
    "above 4 megapixels": (
        lambda: jpeg(Image.new("L", (2100, 2100), 120)),
        lambda: Image.new("RGB", (4, 4), (120, 120, 120)),
    ),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_files_mean_the_same_to_both_loaders(tmp_path, name):
    file, shown = UNUSUAL[name]
    path = tmp_path / "file.jpg"
    path.write_bytes(file())
    shown = shown() if shown else Image.open(path).convert("RGB")
    right = torch.from_numpy(np.array(shown.resize(SIZE[::-1], Image.Resampling.BICUBIC))).permute(2, 0, 1)
    one = [Record(path, 1, 1)]
    sampler = PairSampler([1], seed=0, batch=1, image_size=SIZE, pad=3)
    still = PairSampler([1], seed=0, batch=1, image_size=SIZE, pad=0, mirror_probability=0, erase_probability=0)
    for cache in ("ram", "none"):
        ours, theirs = (loader_of(one, kind, sampler=sampler, cache=cache) for kind in LOADERS)
        assert difference(next(ours).a.image, next(theirs).a.image).max() <= 3
        assert not ours.unreadable and not theirs.unreadable
    for kind in LOADERS:
        image = denormalise(next(loader_of(one, kind, sampler=still, cache="ram")).a.image)[0]
        assert (image.int() - right.int()).abs().max() <= (6 if kind == "dali" else 0), kind


def test_memory_that_does_not_suffice(records, caplog):
    images = encoded.EncodedImages([r.path for r in records], SIZE, lambda index: [index])
    expected = [images.read(index)[1].tobytes() for index in range(10)]
    with caplog.at_level(logging.INFO, "dgfast"):
        images.keep_in_memory(limit=1000, threads=2)
    assert "read from disk" in caplog.text
    assert [images.read(index)[1].tobytes() for index in range(10)] == expected
    images.keep_in_memory(limit=10**6, threads=2)
    for record in records:
        record.path.rename(record.path.with_suffix(".away"))
    try:
        assert [images.read(index)[1].tobytes() for index in range(10)] == expected
    finally:
        for record in records:
            record.path.with_suffix(".away").rename(record.path)


def test_all_processes_together_keep_half_of_the_free_memory(monkeypatch):
    monkeypatch.setattr(encoded, "free_memory", lambda: 8000)
    assert encoded.memory_limit(1) == 4000 and encoded.memory_limit(4) == 1000


@pytest.mark.parametrize("module", [dali, torchvision])
def test_evaluation_keeps_the_order_and_the_last_batch(records, module):
    batches = list(module.evaluation_batches(records, SIZE, 4, workers=0))
    assert [(images.shape[0], start) for images, start in batches] == [(4, 0), (4, 4), (2, 8)]
    for images, start in batches:
        assert images.is_contiguous(memory_format=torch.channels_last)
        for image, record in zip(denormalise(images), records[start:], strict=False):
            plain = Image.open(record.path).convert("RGB").resize(SIZE[::-1], Image.Resampling.BICUBIC)
            off = np.abs(image.permute(1, 2, 0).numpy().astype(int) - np.asarray(plain))
            assert off.mean() < 1 and off.max() <= 6


@pytest.mark.parametrize("damage", ["truncated", "no quantisation tables", "missing"])
def test_evaluation_needs_every_image(own, damage):
    own[5].path.unlink()
    if (data := DAMAGED[damage]()) is not None:
        own[5].path.write_bytes(data)
    with pytest.raises(UserError, match=r"5.jpg cannot be read"):
        list(dali.evaluation_batches(own, SIZE, 4, workers=1))


def test_evaluation_of_one_image_and_of_none(records):
    ((images, start),) = dali.evaluation_batches(records[:1], SIZE, 64, workers=1)
    assert images.shape == (1, 3, *SIZE) and start == 0
    assert not list(dali.evaluation_batches([], SIZE, 64, workers=1))


def test_region_of_a_mirrored_view_is_the_reverse():
    from dgfast.data.pairs import View

    plain = dali.region_of(View(False, 3, 3, None), (32, 16), 3)
    assert plain == (0, 0, 1, 1) and dali.region_of(View(True, 3, 3, None), (32, 16), 3) == (0, 1, 1, 0)
    assert dali.region_of(View(True, 0, 5, None), (32, 16), 3) == (-3 / 32, 1 - 2 / 16, 1 - 3 / 32, -2 / 16)


def test_choice_of_the_loader(monkeypatch):
    choose = choose_module.choose_loader.__wrapped__
    name, reason = choose("auto", CPU)
    assert name == "dali" and reason.startswith("DALI 2") and "CPU" in reason
    assert choose("torchvision", CPU)[0] == "torchvision"
    monkeypatch.setattr(dali, "check", lambda device: (_ for _ in ()).throw(RuntimeError("trace\nno driver")))
    assert choose("auto", CPU) == ("torchvision", "torchvision, because DALI does not work here (no driver)")
    monkeypatch.setitem(sys.modules, "dgfast.data.loaders.dali", None)
    monkeypatch.delattr("dgfast.data.loaders.dali")
    assert choose("auto", CPU)[1].startswith("torchvision, because DALI cannot be imported")
    with pytest.raises(UserError, match="--loader dali: DALI cannot be imported"):
        choose("dali", CPU)


def test_arguments_that_do_not_fit(records):
    with pytest.raises(ValueError, match="9 records; expected the sampler's 10"):
        loader_of(records[:9], sampler=sampler_of(records))
    with pytest.raises(ValueError, match="cache 'disk'"):
        loader_of(records, cache="disk")


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_stays_flat_over_fifty_epochs(tmp_path):
    """If every batch were kept by mistake, the process would grow by 2 % within 40 of the 250 batches."""
    records = make_records(tmp_path)
    sampler = PairSampler([r.person for r in records], seed=0, batch=2, image_size=(96, 48), pad=3)
    loader = loader_of(records, sampler=sampler)
    sizes = []
    for iteration in range(250):  # of 2 samples, 10 images
        next(loader)
        if iteration % 50 == 49:
            gc.collect()
            sizes.append(resident())
    assert max(sizes[1:]) < 1.02 * sizes[0]


def test_pipelines_end_with_their_loaders(records):
    """Each pipeline has some five threads, which must not add up when a loader is made anew for every stage."""

    def threads():
        return len(os.listdir("/proc/self/task"))

    next(loader_of(records))  # what DALI starts once and keeps
    before = threads()
    for end in ("close", "release"):
        loader = loader_of(records)
        next(loader)
        assert threads() > before
        if end == "close":
            loader.close()
            loader.close()
        del loader
        assert threads() <= before


SCRIPT = """
import os, sys
from pathlib import Path
from tests.test_dali_loader import loader_of, make_records
loader = loader_of(make_records(Path(sys.argv[1])))
batches = [next(loader) for _ in range(2)]
print("delivered", flush=True)
if sys.argv[2] == "stop": sys.exit(0)
if sys.argv[2] == "crash": raise ZeroDivisionError
os.kill(os.getpid(), 9)
"""


def test_nothing_is_left_of_a_consumer_that_ends(tmp_path):
    """Each consumer has a session of its own, so that whatever it might have started can be found."""
    statuses = {"stop": 0, "crash": 1, "kill": -signal.SIGKILL}
    consumers = {}
    for end in statuses:  # they work side by side
        (tmp_path / end).mkdir()
        with open(tmp_path / end / "output", "w") as output:
            consumers[end] = subprocess.Popen(
                [sys.executable, "-c", SCRIPT, str(tmp_path / end), end],
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
    for end, process in consumers.items():
        status = process.wait(timeout=120)
        text = (tmp_path / end / "output").read_text()
        assert "delivered" in text
        assert status == statuses[end], text
        assert ("ZeroDivisionError" in text) == (end == "crash")
        deadline = time.monotonic() + 30
        while (left := [pid for pid in session(process.pid) if is_running(pid)]) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not left


def session(leader: int) -> list[int]:
    """The processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[3]) == leader:
                found.append(int(stat.parent.name))
        except OSError:
            pass
    return found


def test_callers_random_state_is_left_alone(records):
    torch.manual_seed(0)
    before, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()
    next(loader_of(records))
    assert torch.equal(before, torch.get_rng_state()) and (np.random.get_state()[1] == numpys).all()


@pytest.mark.skipif(not hasattr(threading, "_shutdown_locks_lock"), reason="CPython 3.13 has no such lock")
def test_a_dropped_reader_is_finished_inside_threadings_own_lock():
    """Garbage may be collected while another thread starts, which holds this lock: a reader that then waited for its
    thread would wait for ever."""

    batches = dali._one_ahead(iter(range(3)))
    # The reader's thread starts here. In `dropping`, a daemon, it would be a daemon, and the lock is not for those.
    assert next(batches) == 0

    def drop() -> None:
        with threading._shutdown_locks_lock:
            batches.close()

    dropping = threading.Thread(target=drop, daemon=True)
    dropping.start()
    dropping.join(20)
    assert not dropping.is_alive()
