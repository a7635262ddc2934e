"""A run from its first iteration to its last: what it leaves, how it is stopped, killed and resumed, who refuses
what."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import dgfast
from dgfast import run_directory
from dgfast.commands import train
from dgfast.data import load_reid
from dgfast.errors import Diverged, Interrupted, UserError
from dgfast.models.dgnet import load_model
from dgfast.training import checkpoint
from dgfast.training.distributed import Workers
from dgfast.training.stages import DGNetStage, TeacherStage
from dgfast.training.trainer import Trainer
from tests import tiny


def trainer(root: Path, out: Path, **overrides) -> Trainer:
    config = tiny.config(root, out, **overrides)
    path = config.run.out / config.run.name
    if not path.exists():
        run_directory.make(config, path)
    data = load_reid(root, "market1501", progress=False)
    return Trainer(config, data, path, Workers(), out / "hub")


def weights(run: Path, name: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return load_file(run / name)


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different, f"{len(different)} of {len(a)} differ, first {different[:3]}"


@pytest.fixture(scope="module")
def whole(market, tmp_path_factory):
    """An uninterrupted run, evaluated, through the command's own entry."""
    out = tmp_path_factory.mktemp("whole")
    train.main(tiny.flags(tiny.config(market, out)))
    return out / "run"


def test_a_run_leaves_everything(whole, market):
    report = json.loads((whole / "report.json").read_text())
    assert set(report["scores"]) == {"histogram", "baseline", "prim", "fine", "both"}
    assert all(0 <= v <= 100 for row in report["scores"].values() for v in row.values())
    assert report["train_identities"] == 2 and report["cameras"] == 3
    assert "DG-Net, both" in (whole / "table.txt").read_text()
    kept = run_directory.read_verification(whole)
    assert kept == {"kind": "both", "alpha": 0.5, "data": "market1501"} | report["verification"]["both"]
    assert report["camera_pairs"]["query_cameras"] == [1, 2, 3]
    for name in ("swaps.png", "rankings.png", "samples/00000003.png", "samples/00000006.png"):
        assert Image.open(whole / name).size[0] > 100, name
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [(e["stage"], e["iteration"]) for e in lines] == [("teacher", i) for i in range(4)] + [
        ("dgnet", i) for i in range(6)
    ]
    assert lines[0].keys() >= {"loss", "accuracy", "images_per_s"} and lines[-1].keys() >= {
        "d/r1",
        "g/cycle",
        "g/total",
    }
    assert any((whole / "tensorboard").iterdir())
    assert os.readlink(whole.parent / "latest") == "run"
    names = [p.name for p in sorted((whole / "checkpoints").iterdir())]
    assert names == [f"{stage}-{i:08d}.pt" for stage, done in (("dgnet", (4, 6)), ("teacher", (2, 4))) for i in done]
    assert not list(whole.rglob("*.tmp"))
    assert load_model(whole / "teacher.safetensors", "teacher").head.classify.out_features == 2


def test_learning_rates_follow_the_milestones(whole):
    state = torch.load(whole / "checkpoints" / "dgnet-00000006.pt", weights_only=True)
    config = tiny.config(Path(), Path()).optim
    rates = {name: [g["lr"] for g in opt["param_groups"]] for name, opt in state["optimizers"].items()}
    assert rates["generator"] == pytest.approx([config.generator_lr / 10])
    assert rates["appearance"] == pytest.approx([config.backbone_lr / 10, config.head_lr / 10])


@pytest.mark.parametrize("stop", [1, 3])
def test_resume_is_bit_identical(whole, market, tmp_path, stop):
    """Also where the stop is no multiple of the checkpoint interval."""
    with pytest.raises(Interrupted):
        trainer(market, tmp_path, stop_after=stop).train()
    trainer(market, tmp_path).train()
    assert_same(weights(tmp_path / "run"), weights(whole))


def run_command(arguments: list[str], **kwargs) -> subprocess.Popen:
    command = [sys.executable, "-m", "dgfast.train", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs)


def wait_for(condition, process: subprocess.Popen, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1][-2000:]
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.mark.parametrize("stage", ["teacher", "dgnet"])
def test_sigkill_then_resume_equals_an_uninterrupted_run(market, tmp_path, whole, stage):
    """Killed at an arbitrary moment of each stage; the run is long enough to be hit, and then compared with a whole
    one."""
    longer = {"iterations": 14, "teacher_iterations": 30, "teacher_milestones": (20,), "milestones": (9,)}
    config = tiny.config(market, tmp_path, **longer)
    process = run_command(tiny.flags(config))
    run = tmp_path / "run"
    wait_for(lambda: len(checkpoint.checkpoints(run / "checkpoints", stage)) >= 1, process)
    time.sleep(0.05)
    process.kill()
    process.communicate()
    assert not (run / "model.safetensors").exists()
    train.main(["--resume", str(run)])
    reference = tmp_path / "reference"
    trainer(market, reference, **longer).train()
    assert_same(weights(run), weights(reference / "run"))
    assert (run / "report.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_finish_the_iteration_save_and_leave(market, tmp_path, number):
    config = tiny.config(market, tmp_path, iterations=2000, checkpoint_every=1000, sample_every=1000, loader_workers=1)
    process = run_command(tiny.flags(config))
    run = tmp_path / "run"
    wait_for(
        lambda: '"dgnet"' in (run / "metrics.jsonl").read_text() if (run / "metrics.jsonl").exists() else False, process
    )
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    last = errors.strip().splitlines()[-1]
    assert "--resume" in last and "Traceback" not in errors
    (saved,) = checkpoint.checkpoints(run / "checkpoints", "dgnet")
    assert torch.load(saved, weights_only=True)["iteration"] > 0


@pytest.mark.parametrize("stage", ["teacher", "dgnet"])
def test_a_signal_in_a_stages_last_iteration_stops_the_run(market, tmp_path, whole, monkeypatch, stage):
    """The next stage, or the evaluation, does not begin; the run goes on from there, to the same weights."""
    run = trainer(market, tmp_path)
    kind, last = (TeacherStage, 3) if stage == "teacher" else (DGNetStage, 5)
    honest = kind.step

    def step(self, batch, iteration):
        if iteration == last:
            signal.raise_signal(signal.SIGTERM)
        return honest(self, batch, iteration)

    monkeypatch.setattr(kind, "step", step)
    with pytest.raises(Interrupted, match=f"stopped after iteration {last + 1} of {stage}") as stopped:
        run.train()
    assert stopped.value.signal == signal.SIGTERM and not (tmp_path / "run" / "model.safetensors").exists()
    monkeypatch.undo()
    trainer(market, tmp_path).train()
    assert_same(weights(tmp_path / "run"), weights(whole))


def test_damaged_checkpoint_gives_way_to_the_one_before(whole, market, tmp_path, caplog):
    with pytest.raises(Interrupted):
        trainer(market, tmp_path, stop_after=5).train()
    newest = checkpoint.checkpoints(tmp_path / "run" / "checkpoints", "dgnet")[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    trainer(market, tmp_path).train()
    assert "trying the one before" in caplog.text
    assert_same(weights(tmp_path / "run"), weights(whole))


def test_without_a_sound_checkpoint_nothing_begins_anew(tmp_path):
    for number in (2, 4):
        (tmp_path / f"dgnet-{number:08d}.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="holds 2 checkpoints of stage dgnet, none of which can be read"):
        checkpoint.latest(tmp_path, "dgnet")
    assert checkpoint.latest(tmp_path, "teacher") is None


def test_non_finite_loss_names_itself_and_keeps_the_last_good_checkpoint(market, tmp_path, monkeypatch):
    run = trainer(market, tmp_path, checkpoint_every=1)
    from dgfast.training import objectives

    honest, calls = objectives.generator_losses, []

    def broken(*args, **kwargs):
        losses = honest(*args, **kwargs)
        calls.append(1)
        return losses | {"cycle": losses["cycle"] * float("nan")} if len(calls) == 3 else losses

    monkeypatch.setattr(objectives, "generator_losses", broken)
    with pytest.raises(Diverged, match="iteration 2: loss g/cycle is not finite") as caught:
        run.train()
    loader = run.loader(2)(0)
    shown = {file for iteration in (1, 2) for file in loader.images_of(iteration)}
    assert shown and all(str(file) in str(caught.value) for file in shown)
    _, state = checkpoint.latest(tmp_path / "run" / "checkpoints", "dgnet")
    assert state["iteration"] == 2
    assert all(torch.isfinite(v).all() for v in state["networks"].values())


@pytest.mark.slow
def test_a_folder_of_one_camera_is_trained_on_and_says_before_why_there_is_no_table(tmp_path, capsys, monkeypatch):
    root = tmp_path / "own"
    for image in tiny.market(tmp_path / "market").rglob("*.jpg"):
        split = {"bounding_box_train": "train", "bounding_box_test": "gallery"}.get(image.parent.name, "query")
        target = root / split / image.name[:4] / f"{image.stem[-9:]}{image.name[5:7]}{split}.jpg".replace("_", "")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(image.read_bytes())
    honest = Trainer.train

    def train_after_the_word(self):
        assert "without a table of scores: all query and gallery images are of one camera" in capsys.readouterr().err
        return honest(self)

    monkeypatch.setattr(Trainer, "train", train_after_the_word)
    config = tiny.config(root, tmp_path, dataset="folder", iterations=1, teacher_iterations=1)
    train.main(tiny.flags(config))
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["no_scores"].startswith("all query and gallery images are of one camera") and "scores" not in report
    assert (tmp_path / "run" / "swaps.png").is_file()


@pytest.mark.slow
def test_a_black_image_does_not_end_a_run(tmp_path):
    root = tiny.market(tmp_path / "market")
    first = min((root / "bounding_box_train").iterdir())
    Image.new("RGB", (48, 48)).save(first, quality=90)
    config = tiny.config(root, tmp_path, iterations=16, milestones=(), structure_blocks=4, teacher_iterations=2)
    train.main(tiny.flags(config))
    assert (tmp_path / "run" / "report.json").is_file()


@pytest.mark.slow
def test_an_image_whose_content_a_crop_cuts_off_does_not_end_a_run(tmp_path):
    """It passes every check, since something is in its corner; most crops show one colour."""
    root = tiny.market(tmp_path / "market")
    first = min((root / "bounding_box_train").iterdir())
    pixels = np.zeros((*tiny.SIZE, 3), np.uint8)
    pixels[0, 0] = 255
    Image.fromarray(pixels).save(first, "PNG")
    options = {"generator_iterations": 8, "iterations": 16, "milestones": (), "structure_blocks": 4}
    networks, _ = trainer(root, tmp_path, teacher_iterations=2, **options).train()
    assert all(torch.isfinite(value).all() for value in networks.state_dict().values())
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2 + 8 + 16
    largest = max(value.abs().max() for value in networks.structure.state_dict().values())
    assert largest < 10  # not merely finite: no gradient was large enough to throw the weights about


def test_bf16_and_fp16_train(market, tmp_path):
    for precision in ("bf16", "fp16"):
        networks, _ = trainer(market, tmp_path / precision, precision=precision, iterations=3).train()
        assert all(torch.isfinite(v).all() for v in networks.state_dict().values())
        assert all(v.dtype != torch.bfloat16 for v in networks.state_dict().values())


def test_a_start_for_the_generator(whole, market, tmp_path):
    """Its own stage: E_s and G alone move, it is resumed like the others, and the DG-Net stage goes on from it."""
    options = {"teacher": whole / "teacher.safetensors", "start_from_teacher": True, "generator_iterations": 5}
    options |= {"structure_jitter": 1.0, "modulation": "stripes", "iterations": 2, "milestones": (2,)}
    run = trainer(market, tmp_path / "a", **options)
    before = {name: value.clone() for name, value in run.networks.state_dict().items()}
    with pytest.raises(Interrupted):
        run.config = dataclasses.replace(run.config, run=dataclasses.replace(run.config.run, stop_after=1))
        run.train()
    _, state = checkpoint.latest(tmp_path / "a" / "run" / "checkpoints", "generator")
    assert state["iteration"] == 5
    moved = {n.split(".")[0] for n, v in state["networks"].items() if not torch.equal(v, before[n])}
    assert {"structure", "decoder"} <= moved <= {"structure", "decoder", "appearance"}
    teacher = weights(whole, "teacher.safetensors")
    assert torch.equal(state["networks"]["appearance.prim.reduce.weight"], teacher["head.reduce.weight"])
    trainer(market, tmp_path / "a", **options).train()
    trainer(market, tmp_path / "b", **options).train()
    assert_same(weights(tmp_path / "a" / "run"), weights(tmp_path / "b" / "run"))
    lines = [json.loads(line) for line in (tmp_path / "b" / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [e["image"] for e in lines if e["stage"] == "generator"]
    assert len(losses) == 5 and losses[-1] < losses[0]


def test_given_teacher_skips_its_stage(whole, market, tmp_path):
    run = trainer(market, tmp_path, teacher=whole / "teacher.safetensors", start_from_teacher=True, iterations=1)
    _, teacher = run.train()
    assert not checkpoint.checkpoints(tmp_path / "run" / "checkpoints", "teacher")
    assert_same(dict(teacher.state_dict()), weights(whole, "teacher.safetensors"))


@pytest.mark.parametrize("style", ["hard", "appearance", "uniform", "two-label"])
def test_label_styles_train(whole, market, tmp_path, style):
    run = trainer(market, tmp_path, teacher=whole / "teacher.safetensors", label_style=style, iterations=3)
    run.train()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["g/primary"] > 0


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"decoder_blocks": 3}, "does not divide"),
        ({"backbone": "vit"}, "unknown"),
        ({"teacher": Path("/nowhere/t.safetensors")}, "does not exist"),
        ({"backbone_weights": "/nowhere/w.pth"}, "does not exist"),
    ],
)
def test_mistakes_are_one_line(market, tmp_path, overrides, words):
    with pytest.raises(UserError, match=words) as caught:
        trainer(market, tmp_path, **overrides).train()
    assert "\n" not in str(caught.value)


def test_teacher_of_another_data_set(whole, tmp_path):
    other = tiny.market(tmp_path / "other", identities=6)
    with pytest.raises(UserError, match="knows 2 identities, the training set has 3"):
        trainer(other, tmp_path, teacher=whole / "teacher.safetensors").train()


def test_resume_refuses_what_would_not_continue(whole, market, tmp_path):
    with pytest.raises(UserError, match="2 samples per stream and iteration, now 4"):
        train.main(["--resume", str(whole), "--batch-size", "4", "--iterations", "8"])
    with pytest.raises(UserError, match="does not fit this configuration"):
        train.main(["--resume", str(whole), "--structure-width", "4", "--iterations", "8"])
    with pytest.raises(UserError, match=r"no config\.json"):
        train.main(["--resume", str(tmp_path)])
    with pytest.raises(UserError, match="holds a run already"):
        train.main(tiny.flags(tiny.config(market, whole.parent)))


TWO = """
import sys
from pathlib import Path
from tests import test_training
root, out = Path(sys.argv[1]), Path(sys.argv[2])
from dgfast.training.distributed import Workers
from dgfast.training.stages import DGNetStage, TeacherStage
from dgfast.training.trainer import Trainer
from dgfast.data import load_reid
config = test_training.frozen(root, out, int(sys.argv[3]))
(out / "run").mkdir(parents=True, exist_ok=True)
with Workers() as workers:
    trainer = Trainer(config, load_reid(root, "market1501", progress=False), out / "run", workers, out)
    trainer.train()
# A thread of the group that outlives it could abort the process while Python shuts down.
threads = [thread.joinpath("comm").read_text().strip() for thread in Path("/proc/self/task").glob("*")]
assert not any("gloo" in name for name in threads), threads
"""


def frozen(root: Path, out: Path, batch: int):
    config = tiny.config(
        root,
        out,
        batch_size=batch,
        teacher_batch_size=4 * batch,
        iterations=5,
        batch_norm="frozen",
        prim_dropout=0.0,
        fine_dropout=0.0,
        milestones=(3,),
        teacher_iterations=0,
    )
    return dataclasses.replace(config)


def test_two_processes_equal_one_of_the_same_global_batch(market, tmp_path):
    """Five steps with BatchNorm frozen and without dropout, whose masks are each process's own."""
    script = tmp_path / "two.py"
    script.write_text(TWO)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    for command, out, batch in (([sys.executable], "one", "4"), (torchrun, "two", "2")):
        done = subprocess.run(
            [*command, str(script), str(market), str(tmp_path / out), batch],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = weights(tmp_path / "one" / "run"), weights(tmp_path / "two" / "run")
    start = trainer(market, tmp_path / "start", iterations=0, teacher_iterations=0)
    start.train()
    first = weights(tmp_path / "start" / "run")
    moved = [name for name in one if not torch.equal(one[name], first[name])]
    assert len(moved) > 50
    # Offsets in front of an instance norm change no output, their gradient is rounding alone, and Adam makes +-lr of
    # any gradient: those few values are free. All that has an effect must agree, and so must the outputs.
    free = re.compile(r"structure\..*\.bias|decoder\.blocks\.\d\.(conv\d|bias\.4)\.bias")
    assert sum(one[name].numel() for name in one if free.fullmatch(name)) < 0.002 * sum(v.numel() for v in one.values())
    for name in one:
        if not free.fullmatch(name):
            torch.testing.assert_close(two[name], one[name], rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    images = torch.randn(2, 3, *tiny.SIZE, generator=torch.Generator().manual_seed(0))
    pictures = []
    for out in ("one", "two"):
        model = dgfast.load(tmp_path / out / "run")
        with torch.no_grad():
            pictures.append(model.decoder(model.structure(images[:, :1]), model.appearance(images).code))
    torch.testing.assert_close(*pictures, rtol=1e-4, atol=1e-4)
