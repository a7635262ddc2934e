"""The ablation: its rows, which runs share what, the queue, and the table's arithmetic."""

import dataclasses
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file

from dgfast.ablation import ROWS, bars, chosen, plan, queue, read_results, settings_of, summary, table, work
from dgfast.commands import ablation, cli, train
from dgfast.config import PRESETS, Config, LabelStyle, Modulation, changed, check
from dgfast.errors import Interrupted, UserError
from tests import tiny

PRESET = PRESETS["quickstart"]
BY_NAME = {row.name: row for row in ROWS}
FIELDS = {
    field.name
    for group in dataclasses.fields(Config)
    if dataclasses.is_dataclass(getattr(PRESET, group.name))
    for field in dataclasses.fields(getattr(PRESET, group.name))
}


def names(runs):
    return [run.config.run.name.rsplit("-", 1)[0] if run.row is None else run.config.run.name for run in runs]


# --- Rows


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_is_a_valid_configuration(row):
    assert set(row.changes) <= FIELDS
    config = changed(PRESET, row.changes)
    check(config)
    assert (
        config != PRESET
        or not row.changes
        or row.name in ("primary", "attention", "background-kept", "label-appearance", "no-image", "no-cycle")
    )
    assert config.loss.label_style in get_args(LabelStyle) and config.model.modulation in get_args(Modulation)
    assert row.reference is None or row.reference in BY_NAME
    assert row.feature in ("prim", "fine", "both")


def test_names_are_unique_and_a_reference_comes_first():
    assert len(BY_NAME) == len(ROWS)
    order = list(BY_NAME)
    assert all(row.reference is None or order.index(row.reference) < order.index(row.name) for row in ROWS)


def test_rows_bring_what_they_are_compared_with():
    assert [row.name for row in chosen(PRESET, ["label-hard"])] == ["none", "generated", "label-hard"]
    assert [row.name for row in chosen(PRESET, groups=["filter"])] == [
        "none",
        "generated",
        "confidence-0.5",
        "confidence-0.8",
    ]
    with pytest.raises(UserError, match="row 'bth' is unknown"):
        chosen(PRESET, ["bth"])


def test_rows_that_would_repeat_another_are_left_out():
    quick = {row.name for row in chosen(PRESET)}
    assert "no-remedy" in quick and not {"attention", "label-appearance"} & quick
    paper = {row.name for row in chosen(PRESETS["market1501"])}
    assert "stripes" in paper and not {"no-remedy", "no-start"} & paper


def test_rows_that_change_the_built_in_people_need_them(tmp_path):
    real = dataclasses.replace(PRESET, data=dataclasses.replace(PRESET.data, data_root=tmp_path))
    assert {row.group for row in chosen(PRESET)} - {row.group for row in chosen(real)} == {"settings"}


# --- Which runs there are


def with_out(config: Config, out: Path, **changes) -> Config:
    return changed(config, {"out": out, "threads": 1, **changes})


def test_rows_share_a_teacher_and_a_start_as_far_as_their_settings_agree(tmp_path):
    rows = [BY_NAME[name] for name in ("none", "generated", "few-images-none", "plane", "no-start", "no-positive")]
    runs = plan(with_out(PRESET, tmp_path), rows, (1,), ())
    assert names(runs) == [
        *("teacher-1", "start-1", "none-1", "generated-1"),
        *("teacher-1", "start-1", "few-images-none-1"),
        *("start-1", "plane-1", "no-start-1", "start-1", "no-positive-1"),
    ]
    by_name = {run.config.run.name: run for run in runs}
    assert by_name["none-1"].needs is by_name["generated-1"].needs
    teacher = by_name["none-1"].needs.needs
    assert by_name["no-start-1"].needs is by_name["plane-1"].needs.needs is teacher
    assert by_name["few-images-none-1"].needs.needs is not teacher
    assert by_name["plane-1"].config.teaching.teacher == teacher.folder / "teacher.safetensors"
    # Both stop before they do anything that a row changes.
    assert teacher.config.run.stop_after == by_name["none-1"].needs.config.run.stop_after == 1
    assert by_name["none-1"].needs.config.optim == PRESET.optim


def test_whole_seeds_come_one_after_another_without_what_is_finished(tmp_path):
    rows = chosen(PRESET, ["generated"])
    config = with_out(PRESET, tmp_path)
    expected = ["teacher-1", "start-1", "none-1", "generated-1", "teacher-2", "start-2", "none-2", "generated-2"]
    assert names(plan(config, rows, (1, 2), ())) == expected
    assert names(plan(config, rows, (1, 2), {("none", 1), ("generated", 1)})) == expected[4:]
    left = plan(config, rows, (1, 2), {("none", 1)})
    assert names(left) == [name for name in expected if name != "none-1"]
    left[0].folder.mkdir(parents=True)
    (left[0].folder / "teacher.safetensors").touch()
    assert names(plan(config, rows, (1,), {("none", 1)})) == ["start-1", "generated-1"]


def test_settings_tell_results_apart_but_not_places_and_speed(tmp_path):
    same = changed(PRESET, {"out": tmp_path, "threads": 7, "teacher": tmp_path, "loader": "dali", "keep": True})
    assert settings_of(same) == settings_of(PRESET)
    for change in ({"seed": 2}, {"iterations": 3}, {"structure_jitter": 0.5}, {"precision": "bf16"}):
        assert settings_of(changed(PRESET, change)) != settings_of(PRESET)


# --- The queue, with a stand-in for `dgfast train`

STAND_IN = """
import json, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[3])
config = json.loads((folder / "config.json").read_text())
with (folder.parent / "calls.txt").open("a") as calls:
    calls.write(folder.name + "\\n")
print("begins", flush=True)
if (folder.parent / f"fail-{folder.name}").exists():
    print("dgfast: something is wrong")
    sys.exit(2)
start = f"checkpoints/generator-{config['optim']['generator_iterations']:08d}.pt"
if not folder.name.startswith("teacher"):
    assert pathlib.Path(config["teaching"]["teacher"]).is_file()
    if not folder.name.startswith("start"):
        assert (folder / start).is_file()
def stop(*_):
    (folder / "checkpoints" / "saved").touch()
    sys.exit(143)
if (folder.parent / f"wait-{folder.name}").exists() and not (folder / "checkpoints" / "saved").exists():
    signal.signal(signal.SIGTERM, stop)
    (folder.parent / "waits").touch()
    time.sleep(60)
(folder / "checkpoints").mkdir(exist_ok=True)
(folder / "teacher.safetensors").touch()
if not folder.name.startswith("teacher"):
    (folder / start).touch()
if config["run"]["stop_after"] is None:
    seed = config["run"]["seed"]
    gain = 3 + seed if "generated" in folder.name else 0
    scores = {kind: {"mAP": 70.0 + seed + gain, "rank1": 80.0} for kind in ("prim", "fine", "both")}
    scores["baseline"] = {"mAP": 60.0 + seed, "rank1": 70.0}
    (folder / "report.json").write_text(json.dumps({"scores": scores}))
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(queue, "_DGFAST", (sys.executable, str(script)))
    monkeypatch.setattr(queue, "PAUSE", 0.02)
    runs = tmp_path / "out" / "runs"
    runs.mkdir(parents=True)

    class Setting:
        config = with_out(PRESET, tmp_path / "out")
        rows = chosen(PRESET, ["generated"])
        folder = runs

        def work(self, **options):
            left = plan(self.config, self.rows, (1, 2), read_results(self.config, self.rows))
            return work(self.config.run.out, left, jobs=2, **options)

        def calls(self):
            found = (runs / "calls.txt").read_text().split()
            (runs / "calls.txt").unlink()
            return sorted(name if name[0] in "ng" else name.rsplit("-", 1)[0] for name in found)

        def done(self):
            return sorted(read_results(self.config, self.rows))

    return Setting()


ALL = sorted(f"{kind}-{seed}" for kind in ("teacher", "start", "none", "generated") for seed in (1, 2))
DONE = [("generated", 1), ("generated", 2), ("none", 1), ("none", 2)]


def test_a_queue_works_through_all_runs_and_makes_none_again(stand_in):
    assert stand_in.work() == [] and stand_in.calls() == ALL and stand_in.done() == DONE
    assert not list(stand_in.folder.glob("generated-*/checkpoints"))
    assert list(stand_in.folder.glob("start-*/checkpoints/*"))
    assert stand_in.work() == [] and not (stand_in.folder / "calls.txt").exists()
    entries = summary(stand_in.rows, read_results(stand_in.config, stand_in.rows))
    (entry,) = [entry for entry in entries if entry["row"] == "generated"]
    assert entry["difference"]["mAP"] == {"mean": 4.5, "deviation": pytest.approx(0.7071), "n": 2}


def test_results_of_another_day_count(stand_in, tmp_path):
    stand_in.work()
    stand_in.calls()
    other = tmp_path / "elsewhere"
    other.mkdir()
    (stand_in.config.run.out / "results").rename(other / "results")
    stand_in.config = with_out(PRESET, other)
    assert stand_in.done() == DONE and stand_in.work() == [] and not (stand_in.folder / "calls.txt").exists()


def test_checkpoints_are_kept_on_demand(stand_in):
    stand_in.work(keep=True)
    assert len(list(stand_in.folder.glob("generated-*/checkpoints"))) == 2


def test_a_run_that_fails_leaves_the_others_running(stand_in):
    fails = stand_in.folder / "fail-none-1"
    fails.touch()
    (failure,) = stand_in.work()
    assert failure.name == "none-1" and failure.said == "dgfast: something is wrong"
    assert failure.log == stand_in.folder / "none-1" / "log.txt" and "begins" in failure.log.read_text()
    assert stand_in.calls() == ALL and stand_in.done() == [key for key in DONE if key != ("none", 1)]
    fails.unlink()
    assert stand_in.work() == [] and stand_in.calls() == ["none-1"] and stand_in.done() == DONE


def test_what_needs_a_failed_run_is_not_begun(stand_in):
    left = plan(stand_in.config, stand_in.rows, (1, 2), ())
    (stand_in.folder / f"fail-{left[0].config.run.name}").touch()
    (failure,) = stand_in.work()
    assert failure.name.startswith("teacher-1")
    assert stand_in.calls() == sorted(["teacher-1", *(name for name in ALL if name.endswith("2"))])


def test_a_signal_reaches_the_runs_once_and_the_same_command_goes_on(stand_in):
    (stand_in.folder / "wait-generated-1").touch()

    def stop():
        while not (stand_in.folder / "waits").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Interrupted, match="the same command goes on"):
        stand_in.work()
    thread.join()
    assert (stand_in.folder / "generated-1" / "checkpoints" / "saved").exists()
    assert ("generated", 1) not in stand_in.done()
    stand_in.calls()
    assert stand_in.work() == [] and "generated-1" in stand_in.calls() and stand_in.done() == DONE


def test_no_run_is_begun_when_the_time_is_over(stand_in):
    assert stand_in.work(minutes=0) == [] and stand_in.done() == []
    assert not (stand_in.folder / "calls.txt").exists()


def test_two_queues_do_not_work_in_one_folder(stand_in):
    with queue._alone(stand_in.config.run.out):
        with pytest.raises(UserError, match="in use"):
            stand_in.work()


def test_results_of_other_settings_are_refused(stand_in, tmp_path):
    stand_in.work()
    stand_in.config = changed(stand_in.config, {"iterations": 300})
    with pytest.raises(UserError, match=r"generated-1.json was made with --iterations 400; expected 300") as error:
        stand_in.done()
    assert "\n" not in str(error.value)
    (stand_in.config.run.out / "results" / "generated-1.json").write_text('{"row": "generated"}')
    with pytest.raises(UserError, match="generated-1.json is no result"):
        stand_in.done()


def test_a_run_directory_of_other_settings_is_refused(stand_in):
    (stand_in.folder / "wait-none-1").touch()
    stand_in.work(minutes=0)
    run = next(run for run in plan(stand_in.config, stand_in.rows, (1,), ()) if run.row)
    run.needs.folder.joinpath("checkpoints").mkdir(parents=True)
    (run.needs.folder / run.needs.product).touch()
    run.prepare()
    run.prepare()
    other = dataclasses.replace(run, config=changed(run.config, {"cycle_weight": 3.0}))
    with pytest.raises(UserError, match="--cycle-weight 0.0; expected 3.0"):
        other.prepare()


# --- The table


def result(mAP, rank1, transfer=None, l1=None, prim=0.0, teacher=60.0):
    scores = {
        "baseline": {"mAP": teacher, "rank1": 70.0},
        "prim": {"mAP": prim, "rank1": prim},
        "both": {"mAP": mAP, "rank1": rank1},
    }
    found = {"scores": scores}
    if transfer is not None:
        found["transfer"] = {"both": {"mAP": transfer}}
    if l1 is not None:
        found["quality"] = {"clothes": {"l1": l1}}
    return found


def test_the_arithmetic_of_the_table():
    rows = chosen(PRESET, ["generated", "baseline"])
    results = {
        ("none", 1): result(70.0, 80.0, 30.0),
        ("none", 2): result(72.0, 84.0, 31.0),
        ("none", 3): result(71.0, 82.0),
        ("generated", 1): result(73.0, 85.0, 36.0, 0.11),
        ("generated", 3): result(72.0, 83.0, 38.0, 0.13),
        ("generated", 4): result(90.0, 99.0, 50.0, 0.12),
        ("baseline", 1): result(1.0, 1.0, prim=69.0),
    }
    none, both, baseline = summary(rows, results)
    assert none["seeds"] == [1, 2, 3] and none["difference"]["mAP"] is None and none["clothes_l1"] is None
    assert none["mAP"]["mean"] == 71 and none["mAP"]["deviation"] == 1 and none["teacher_mAP"]["mean"] == 60
    assert both["mAP"]["mean"] == pytest.approx(statistics.mean([73, 72, 90]), abs=1e-4)
    assert both["mAP"]["deviation"] == pytest.approx(statistics.stdev([73, 72, 90]), abs=1e-4)
    # Seeds 1 and 3 have both rows, and of those only seed 1 has both transfers.
    assert both["difference"]["mAP"] == {
        "mean": 2.0,
        "deviation": pytest.approx(statistics.stdev([3, 1]), abs=1e-4),
        "n": 2,
    }
    assert both["difference"]["transfer_mAP"] == {"mean": 6.0, "deviation": None, "n": 1}
    assert both["clothes_l1"]["mean"] == pytest.approx(0.12)
    assert baseline["mAP"]["mean"] == 69 and baseline["difference"]["mAP"]["mean"] == -1
    text = table([none, both, baseline])
    lines = text.splitlines()
    assert len({len(line) for line in lines}) == 1 and len(lines) == 5
    cells = [cell.strip() for cell in lines[3].strip("|").split("|")]
    assert cells[0] == "generated" and cells[2:] == [
        *("3", "78.3 ± 10.1", "89.0 ± 8.7", "none", "+2.0 ± 1.4", "+3.0 ± 2.8", "41.3 ± 7.6", "+6.0", "0.120")
    ]
    assert "Not compared" not in text
    assert bars([none]) is None and bars([none, both, baseline]).shape[0] == 18 * 3


PUBLISHED = Path(__file__).parent.parent / "bench" / "results" / "ablation"


@pytest.mark.parametrize(
    ("folders", "gain", "rows"), [(("weave/*.json", "360/*none-*.json"), 2.5, 9), (("weave-2/*.json",), 1.8, 22)]
)
def test_published_tables_can_be_printed_again(tmp_path, capsys, folders, gain, rows):
    """The command of docs/ablation.md, by which anybody can check its tables."""
    (tmp_path / "results").mkdir()
    for file in (file for folder in folders for file in PUBLISHED.glob(folder)):
        shutil.copy(file, tmp_path / "results")
    ablation.main(["--table", "--out", str(tmp_path)])
    text = capsys.readouterr().out
    assert f"{gain:+.1f} ± " in next(line for line in text.splitlines() if line.startswith("| generated "))
    compared = [entry for entry in json.loads((tmp_path / "ablation.json").read_text()) if entry["difference"]["mAP"]]
    assert len(compared) >= rows and "Not compared" not in text


def test_rows_of_another_teacher_are_not_compared():
    """A file of another day may be of a run whose teacher was trained anew."""
    rows = chosen(PRESET, ["generated"])
    results = {
        ("none", 1): result(70.0, 80.0),
        ("none", 2): result(70.0, 80.0),
        ("generated", 1): result(73.0, 85.0, teacher=60.05),  # tested on another machine
        ("generated", 2): result(79.0, 88.0, teacher=62.0),
    }
    entries = summary(rows, results)
    assert entries[1]["difference"]["mAP"] == {"mean": 3.0, "deviation": None, "n": 1}
    assert entries[1]["other_teacher"] == [2] and entries[0]["other_teacher"] == []
    assert entries[1]["mAP"]["mean"] == 76
    assert table(entries).endswith("\nNot compared, since their teacher is not their reference's: generated-2\n")


# --- The command


def flags(market: Path, out: Path, **overrides) -> list[str]:
    """Without those of a single run."""
    words = tiny.flags(tiny.config(market, out, generator_iterations=2, start_from_teacher=True, **overrides))
    for name in ("--name", "--seed"):
        place = words.index(name)
        del words[place : place + 2]
    return words


def test_flags_of_a_single_run_are_refused(market, tmp_path):
    for words in (
        ["--name", "x"],
        ["--seed", "3"],
        ["--stop-after", "2"],
        ["--teacher", "x"],
        ["--jobs", "0"],
        ["--dry-run", "--table"],
    ):
        with pytest.raises(UserError, match=words[0]):
            ablation.main([*flags(market, tmp_path), *words])
    assert ablation.parse([]).config.run.out == Path("ablation") and ablation.parse([]).config.run.threads == 1


def test_a_dry_run_lists_what_is_left_and_makes_nothing(market, tmp_path, capsys):
    ablation.main([*flags(market, tmp_path / "out"), "--rows", "generated", "--dry-run"])
    printed = capsys.readouterr().out
    assert "generated-2" in printed and "8 runs are left" in printed and not (tmp_path / "out").exists()
    ablation.main([*flags(market, tmp_path / "out"), "--table"])
    assert "no results yet" in capsys.readouterr().out


@pytest.mark.slow
def test_two_rows_killed_on_the_way(market, tmp_path, capsys):
    """The queue is killed and goes on; a run that was given its teacher and start ends like one that was not. Of one
    seed, which is not that of a run by itself; several are the matter of the tests with a stand-in above."""
    out = tmp_path / "out"
    words = [*flags(market, out), "--rows", "generated", "--seeds", "2", "--keep"]
    command = [sys.executable, "-c", "from dgfast.commands.cli import main; main()", "ablation", *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not list(out.glob("runs/start-2-*/log.txt")):  # what the rows need is half done, and neither is begun
        assert process.poll() is None, process.communicate()[1][-2000:]
        time.sleep(0.05)
    process.kill()
    process.communicate()
    while True:  # the lock is the children's until they have left
        try:
            ablation.main(words)
            break
        except UserError as error:
            assert "in use" in str(error)
            time.sleep(0.2)
    printed = capsys.readouterr().out
    assert "generated" in printed and (out / "ablation.md").read_text() in printed
    found = json.loads((out / "results" / "generated-2.json").read_text())
    assert set(found["scores"]) == {"histogram", "baseline", "prim", "fine", "both"} and found["seed"] == 2
    (none, both) = json.loads((out / "ablation.json").read_text())
    assert both["seeds"] == [2] and both["difference"]["mAP"]["n"] == 1 and none["reference"] is None
    assert (out / "ablation.png").exists()
    alone = tiny.config(market, tmp_path / "alone", generator_iterations=2, start_from_teacher=True, seed=2)
    train.main(tiny.flags(alone))
    ours = load_file(out / "runs" / "generated-2" / "model.safetensors")
    wanted = load_file(tmp_path / "alone" / "run" / "model.safetensors")
    assert all(torch.equal(ours[name], value) for name, value in wanted.items())


@pytest.mark.slow
def test_built_in_people_are_also_tried_on_others(tmp_path, capsys):
    config = tiny.config(tmp_path, tmp_path / "out", data_root=None, teacher_iterations=1)
    config = dataclasses.replace(config, preset="quickstart")
    words = tiny.flags(config)
    for name in ("--name", "--seed"):
        place = words.index(name)
        del words[place : place + 2]
    words += ["--synthetic-train-identities", "2", "--synthetic-test-identities", "2"]
    cli.dispatch(["ablation", *words, "--rows", "none", "--seeds", "1"])
    found = json.loads((tmp_path / "out" / "results" / "none-1.json").read_text())
    assert 0 < found["transfer"]["both"]["mAP"] <= 100 and 0 < found["quality"]["clothes"]["l1"] < 1
    assert not (tmp_path / "out" / "runs" / "none-1" / "checkpoints").exists()
    capsys.readouterr()
    cli.dispatch(["ablation", *words, "--rows", "none", "--seeds", "1"])
    assert "transfer" in capsys.readouterr().out
