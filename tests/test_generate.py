"""`dgfast generate`: a data set of generated people, the same to the byte however often the writing was stopped."""

import csv
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import dgfast
from dgfast import run_directory
from dgfast.commands import cli, generate, train
from dgfast.commands.trained import open_model
from dgfast.data import load_reid
from dgfast.data.datasets.fingerprint import describe
from dgfast.data.datasets.layouts import told_by_name
from dgfast.data.loaders.image import read_image
from dgfast.errors import Interrupted
from dgfast.files import write_picture
from dgfast.models import DGNet
from dgfast.models.dgnet import save_model
from dgfast.run_directory import locked
from dgfast.synthesis import generated_data
from dgfast.synthesis.generated_data import Plan
from tests import tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A data set of three training people, and a run of a tiny model that was trained on it."""
    here = tmp_path_factory.mktemp("place")
    root = tiny.market(here / "market", identities=6, images=2)
    data = load_reid(root, splits=("train",), progress=False)
    run_directory.make(tiny.config(root, here), here / "run", describe(data))
    torch.manual_seed(0)
    save_model(DGNet(tiny.MODEL, data.num_classes), tiny.MODEL, data.num_classes, here / "run" / "model.safetensors")
    return here


def words(place: Path, out: Path, *more: str) -> list[str]:
    fixed = ["--loader", "torchvision", "--loader-workers", "0", "--batch-size", "4"]
    return ["generate", "--model", f"{place}/run", "--data-root", f"{place}/market", "--out", str(out), *fixed, *more]


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "index.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory):
    """Eleven pictures, written without a stop."""
    out = tmp_path_factory.mktemp("whole") / "generated"
    cli.dispatch(words(place, out, "--images", "11"))
    return out


def test_what_is_written_is_a_training_set(place, whole):
    assert {path.name for path in whole.iterdir()} == {"generated.json", "bounding_box_train", "index.csv"}
    for kind in ("auto", "market1501"):
        data = load_reid(whole, kind, progress=False)
        assert data.name == "market1501" and len(data.train) == 11 and not data.query and not data.gallery
        assert "no query and no gallery" in " ".join(data.notes)
        assert data.identities == (1, 2, 3)
    index = {row["file"]: row for row in rows(whole)}
    for record in data.train:
        row = index.pop(str(record.path.relative_to(whole)))
        assert (str(record.person), str(record.camera)) == (row["identity"], row["camera"])
        assert record.person == told_by_name(place / "market" / row["clothes"])[0]
        assert record.camera == told_by_name(place / "market" / row["body"])[1]
        assert record.person != told_by_name(place / "market" / row["body"])[0]
        assert read_image(record.path).size == (48, 48)
    assert not index


def test_a_picture_is_the_swap_that_the_index_names(place, whole, tmp_path):
    model = dgfast.load(place / "run")
    for row in rows(whole)[::4]:
        expected = model.swap(*(place / "market" / row[side] for side in ("body", "clothes")))[0]
        write_picture(expected, tmp_path / "swap.jpg")
        found, expected = (np.asarray(read_image(path)) for path in (whole / row["file"], tmp_path / "swap.jpg"))
        assert np.abs(found.astype(int) - expected).mean() < 0.5  # rounded in a batch of another size


def test_the_plan_depends_on_the_seed_and_the_number_alone(place):
    data = load_reid(place / "market", splits=("train",), progress=False)
    plan = Plan(data, 3)
    forth, back = [[plan.picture(n) for n in order] for order in (range(300), range(299, -1, -1))]
    assert forth == back[::-1] and Plan(data, 3).picture(7) == forth[7]
    assert [Plan(data, 4).picture(n) for n in range(300)] != forth
    assert Counter(p.clothes.person for p in forth) == {1: 100, 2: 100, 3: 100}
    assert {(p.clothes.path, p.body.person) for p in forth} == {
        (record.path, other) for record in data.train for other in {1, 2, 3} - {record.person}
    }
    assert {p.body.path for p in forth} == {record.path for record in data.train}
    assert len({p.name for p in forth}) == 300


@pytest.mark.parametrize("after", [1, 2])
def test_a_stopped_one_goes_on_and_ends_with_the_same_bytes(place, whole, tmp_path, monkeypatch, after):
    out, made = tmp_path / "generated", []
    make = generated_data.Generation._make

    def stopped(self, networks, judge, number, images):
        made.append(number)
        if len(made) == after:
            signal.raise_signal(signal.SIGTERM)
        return make(self, networks, judge, number, images)

    monkeypatch.setattr(generated_data.Generation, "_make", stopped)
    with pytest.raises(Interrupted, match=f"stopped after {4 * after} of 11 pictures; the same command goes on"):
        cli.dispatch(words(place, out, "--images", "11"))
    assert len(list((out / "bounding_box_train").iterdir())) == 4 * after and not (out / "index.csv").exists()
    cli.dispatch(words(place, out, "--images", "11"))
    assert made == [0, 1, 2]  # nothing is made twice
    assert content(out) == content(whole)


def test_what_a_kill_leaves_is_mended(place, whole, tmp_path, monkeypatch):
    """Killed within a batch: some of its files are there, one under its temporary name, half a line of progress."""
    out, made = tmp_path / "generated", []
    make = generated_data.Generation._make

    def dies(self, networks, judge, number, images):
        made.append(number)
        if made == [0, 1, 2]:
            raise KeyboardInterrupt
        return make(self, networks, judge, number, images)

    monkeypatch.setattr(generated_data.Generation, "_make", dies)
    with pytest.raises(KeyboardInterrupt):
        cli.dispatch(words(place, out, "--images", "11"))
    progress = out / ".progress.jsonl"
    assert [json.loads(line)["batch"] for line in progress.read_text().splitlines()] == [0]
    progress.write_text(progress.read_text() + '{"batch": 1, "confid')
    pictures = sorted((out / "bounding_box_train").iterdir())
    assert len(pictures) == 8
    (out / "bounding_box_train" / ".0001_c1s1_000004_00.jpg.abcd1234.tmp").write_bytes(b"half")
    next(p for p in pictures if "_000000_" in p.name).unlink()  # and one that the journal thinks is there
    cli.dispatch(words(place, out, "--images", "11"))
    assert made == [0, 1, 2, 0, 1, 2] and content(out) == content(whole)


@pytest.mark.slow
def test_a_killed_process_goes_on(place, whole, tmp_path):
    out = tmp_path / "generated"
    kill = (
        "import os, signal, sys\nfrom dgfast.commands import cli\nfrom dgfast.synthesis import generated_data\n"
        "write, done = generated_data.write_picture, []\n"
        "def dies(*arguments):\n    write(*arguments)\n    done.append(0)\n"
        "    len(done) == 6 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "generated_data.write_picture = dies\ncli.dispatch(sys.argv[1:])"
    )
    done = subprocess.run([sys.executable, "-c", kill, *words(place, out, "--images", "11")], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert 6 <= len(list((out / "bounding_box_train").glob("*.jpg"))) < 11
    cli.dispatch(words(place, out, "--images", "11"))
    assert content(out) == content(whole)


def test_a_finished_one_is_left_as_it_is(place, whole, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(generate, "_judge", lambda *_: pytest.fail("nothing is left to do"))
    before = {path: os.stat(path).st_mtime_ns for path in whole.rglob("*")}
    cli.dispatch(words(place, whole, "--images", "11"))
    assert capsys.readouterr().out.splitlines()[-1] == f"{whole}: 11 pictures of 3 identities"
    assert {path: os.stat(path).st_mtime_ns for path in whole.rglob("*")} == before


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--images", "12"], "was begun with --images 11, now 12; expected the same settings"),
        (["--images", "11", "--seed", "1"], "was begun with --seed 0, now 1"),
        (["--images", "11", "--confidence", "0.5"], "was begun with --confidence None, now 0.5"),
        (["--images", "11", "--batch-size", "5"], "was begun with --batch-size 4, now 5"),
        (["--per-identity", "3"], "was begun with --images 11, now 9"),
    ],
)
def test_other_settings_are_refused(place, whole, more, said):
    before = content(whole)
    with pytest.raises(dgfast.UserError, match=said) as error:
        cli.dispatch(words(place, whole, *more))
    assert "\n" not in str(error.value) and content(whole) == before


def test_another_model_or_data_set_is_refused(place, whole, tmp_path):
    other = tmp_path / "other.safetensors"
    save_model(DGNet(tiny.MODEL, 3), tiny.MODEL, 3, other)
    with pytest.raises(dgfast.UserError, match="was begun with another --model"):
        cli.dispatch([*words(place, whole, "--images", "11"), "--model", str(other)])
    market = tiny.market(tmp_path / "market", identities=6, images=1)
    with pytest.raises(dgfast.UserError, match="was begun with another --data-root"):
        cli.dispatch([*words(place, whole, "--images", "11"), "--data-root", str(market)])


@pytest.mark.parametrize("own", [True, False], ids=["own classes", "other people"])
def test_unsure_pictures_are_left_out_and_the_rest_stays_the_same(place, tmp_path, own, capsys):
    """The confidence is the head's probability on the run's own people, else the cosine to their mean feature."""
    model = open_model(place / "run" if own else None)
    given = ["--model", str(place / "run")] if own else ["--model", str(run_directory.BUNDLED)]
    every, some = tmp_path / "every", tmp_path / "some"
    common = ["--per-identity", "2"]
    cli.dispatch([*words(place, every, *common), *given])
    said = capsys.readouterr().out
    assert ("probability of the primary head" if own else "cosine to the mean feature") in said
    found = rows(every)
    sure = sorted(float(row["confidence"]) for row in found)
    limit = sure[3]
    cli.dispatch([*words(place, some, *common, "--confidence", str(limit)), *given])
    kept = [row for row in found if float(row["confidence"]) >= limit]
    assert rows(some) == kept and 0 < len(kept) < len(found) == 6
    assert f"{len(found) - len(kept)} left out" in capsys.readouterr().out
    both = content(every / "bounding_box_train")
    assert content(some / "bounding_box_train") == {
        Path(row["file"]).name: both[Path(row["file"]).name] for row in kept
    }

    data = load_reid(place / "market", splits=("train",), progress=False)
    for row in found[:2]:
        swap = model.swap(*(place / "market" / row[side] for side in ("body", "clothes")))[0]
        person = int(row["identity"])
        if own:
            logits = model.appearance(model.images([swap])).prim_logits
            expected = logits.softmax(1)[0, data.class_of[person]].item()
        else:
            photographs = model.embed([r.path for r in data.train if r.person == person], loader="torchvision")
            vector = model.embed([swap])[0]
            expected = torch.nn.functional.cosine_similarity(vector, photographs.mean(0), dim=0).item()
        assert float(row["confidence"]) == pytest.approx(expected, abs=2e-3)


def test_two_processes_do_not_write_one_folder(place, tmp_path):
    out = tmp_path / "generated"
    hold = "import sys\nfrom pathlib import Path\nfrom dgfast.run_directory import locked\n"
    hold += "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()"
    generate_words = words(place, out, "--images", "4")
    plan = Plan(load_reid(place / "market", splits=("train",), progress=False), 0)
    model = open_model(place / "run")
    described = {"model": generate._weights(model), "data_root": describe(plan.data)["fingerprint"]}
    generated_data.Generation(out, plan, 4, 4, None, described).begin()
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(dgfast.UserError, match=f"is being written by process {holder.pid} on "):
            cli.dispatch(generate_words)
    finally:
        holder.communicate()
    cli.dispatch(generate_words)
    assert len(rows(out)) == 4
    with locked(tmp_path):
        pass


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--images", "3", "--per-identity", "2"], "--images and --per-identity are both given"),
        (["--per-identity", "10000000"], "--per-identity 10000000 gives 30000000 pictures; expected at most 10000000"),
        (["--confidence", "2"], "--confidence is 2.0; expected a number from -1 to 1"),
        (["--model", "/nowhere"], "/nowhere does not exist"),
        (["--data-root", "/nowhere"], "/nowhere does not exist"),
        (["--out", "/proc/nowhere"], "cannot be written to"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(place, tmp_path, more, said):
    with pytest.raises(dgfast.UserError, match=said) as error:
        cli.dispatch([*words(place, tmp_path / "generated"), *more])
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_else_is_refused(place, tmp_path):
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(dgfast.UserError, match="exists and is not an empty folder"):
        cli.dispatch(words(place, tmp_path))
    (tmp_path / "generated.json").write_text("[]")
    with pytest.raises(dgfast.UserError, match=r"generated.json cannot be read .*; expected what dgfast wrote there"):
        cli.dispatch(words(place, tmp_path))


def test_one_person_alone_cannot_change_clothes(place, tmp_path):
    market = tiny.market(tmp_path / "market", identities=2)
    with pytest.raises(dgfast.UserError, match="one identity alone; expected at least two"):
        cli.dispatch([*words(place, tmp_path / "generated"), "--data-root", str(market)])
    assert not (tmp_path / "generated").exists()


@pytest.mark.slow
def test_a_run_can_be_trained_on_it(whole, tmp_path):
    config = tiny.config(whole, tmp_path, iterations=1, teacher_iterations=1, loader="torchvision")
    train.main(tiny.flags(config))
    assert (tmp_path / "run" / "model.safetensors").is_file()
