"""The campaign for GPUs: its parts run on a CPU, none can spoil the others, and the table says what was measured."""

import importlib
import json
import os
import sys
import time
from pathlib import Path

import pytest

from bench.campaign.bounded import bounded
from bench.campaign.plan import CALL_SECONDS, CALLS, PARTS
from bench.campaign.record import Record
from bench.campaign.table import CARDS, MISSING, table

ROOT = Path(__file__).parents[1]
campaign = importlib.import_module("bench.campaign.__main__")


def content(folder, part):
    return json.loads(campaign.file_of(part, folder).read_text())


def contents(folder):
    return {part.number: content(folder, part) for part in PARTS}


INTERPRETED = [part for part in PARTS if part.interpreted]


@pytest.mark.slow
def test_parts_run_on_a_cpu_each_in_a_process_of_its_own(tmp_path, capsys):
    numbers = [str(part.number) for part in INTERPRETED]
    status = campaign.main(["--part", *numbers, "--dry-run", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert status == 0, said
    for part in INTERPRETED:
        assert_good(content(tmp_path, part))
        assert f"part {part.number}: good in " in said


@pytest.mark.slow
@pytest.mark.parametrize("part", [part for part in PARTS if part not in INTERPRETED], ids=lambda part: part.function)
def test_every_other_part_runs_on_a_cpu(part, tmp_path):
    """In this process, whose torch need not be loaded again."""
    assert campaign.main(["--child", str(part.number), "--dry-run", "--out", str(tmp_path)]) == 0
    assert_good(content(tmp_path, part))


def assert_good(found):
    assert found["verdict"] == "good", found
    assert found["dry_run"] and found["device"] == "cpu"
    assert found["versions"]["torch"] and found["checks"] and found["error"] is None


def test_a_call_ends_within_its_ten_minutes():
    by_number = {part.number: part for part in PARTS}
    assert sorted(number for call in CALLS for number in call) == sorted(by_number)
    assert all(sum(by_number[number].limit for number in call) < CALL_SECONDS for call in CALLS)
    assert all(part.expected < part.limit for part in PARTS)


def stand_in(monkeypatch, broken, end):
    """Parts that find one thing; part `broken` then ends as `end` says."""

    def run(command, environment, seconds):
        number = int(command[command.index("--child") + 1])
        record = Record(Path(command[command.index("--out") + 1], f"part-{number:02d}.json"), PARTS[number - 1], True)
        record.check("one thing", 0.5, 1.0)
        if number == broken:
            return end(record)
        record.finish()
        return 0, ""

    monkeypatch.setattr(campaign, "bounded", run)


@pytest.mark.parametrize(
    ("end", "told"),
    [
        (lambda record: (-11, "Fatal error\nSegmentation fault"), "exit status -11, Segmentation fault"),
        (lambda record: (None, ""), "ended after its 45 s"),
        (lambda record: (0, ""), "exit status 0"),  # it left before it was finished
        (lambda record: (record.file.unlink(), (1, "no module\nModuleNotFoundError"))[1], "ModuleNotFoundError"),
    ],
    ids=["crash", "time", "early exit", "nothing written"],
)
def test_a_part_that_breaks_leaves_the_others_running(tmp_path, monkeypatch, capsys, end, told):
    stand_in(monkeypatch, 4, end)
    assert campaign.main(["--part", "all", "--dry-run", "--out", str(tmp_path)]) == 1
    found = contents(tmp_path)
    assert {number for number, content in found.items() if content["verdict"] != "good"} == {4}
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("part 4: bad")]
    assert told in line
    if "ModuleNotFoundError" not in told:
        assert found[4]["checks"][0]["name"] == "one thing"  # what it had found is kept


def test_several_parts_can_be_chosen(tmp_path, monkeypatch):
    stand_in(monkeypatch, None, None)
    assert campaign.main(["--part", "2", "10", "--dry-run", "--out", str(tmp_path)]) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["part-02.json", "part-10.json"]


def test_an_old_result_does_not_stand_for_a_part_that_broke(tmp_path, monkeypatch):
    stand_in(monkeypatch, None, None)
    campaign.main(["--part", "3", "--dry-run", "--out", str(tmp_path)])
    monkeypatch.setattr(campaign, "bounded", lambda *_: (1, "no such module"))
    assert campaign.main(["--part", "3", "--dry-run", "--out", str(tmp_path)]) == 1
    assert json.loads((tmp_path / "part-03.json").read_text())["checks"] == []


def test_when_time_is_up_everything_that_was_started_ends(tmp_path):
    note = tmp_path / "child"
    command = ["sh", "-c", f"sleep 600 & echo $! > {note}; echo begun; wait"]
    status, said = bounded(command, dict(os.environ), 2)
    assert status is None and said == "begun\n"
    child = Path("/proc") / note.read_text().strip()  # killed, and perhaps not yet collected by its parent

    def ended() -> bool:
        return not child.exists() or ") Z " in (child / "stat").read_text()

    patience = time.monotonic() + 10  # on a busy machine a killed process still has to be given a moment to die
    while not ended() and time.monotonic() < patience:
        time.sleep(0.05)
    assert ended()
    assert bounded([sys.executable, "-c", "raise SystemExit(3)"], dict(os.environ), 60)[0] == 3


@pytest.mark.parametrize(
    ("value", "verdict"), [(0.9, "good"), (1.1, "bad"), (float("nan"), "bad"), (float("inf"), "bad"), (None, "bad")]
)
def test_the_verdict_is_that_of_the_comparisons(tmp_path, value, verdict):
    record = Record(tmp_path / "part.json", PARTS[0], False)
    record.aim("slow", 0.1, 0.85)  # an aim that is missed is no fault
    if value is not None:  # nothing compared, nothing good
        record.check("error", value, 1.0)
    record.finish()
    content = json.loads((tmp_path / "part.json").read_text())
    assert content["verdict"] == verdict and not content["aims"][0]["good"]


def test_without_a_gpu_a_part_says_so(tmp_path, capsys):
    assert campaign.main(["--child", "5", "--out", str(tmp_path)]) == 2
    assert "expected one, or --dry-run" in capsys.readouterr().out


def result(folder, part, device, dry_run=False, **figures):
    record = Record(folder / f"part-{part:02d}.json", PARTS[part - 1], dry_run)
    record.content["device"] = device
    for key, value in figures.items():
        record.figure(key.replace("_", " "), value)
    record.check("error", 0.0, 1.0)
    record.finish()


def cells(rows, start):
    (row,) = [row for row in rows.splitlines() if row.startswith(f"| {start}")]
    return [cell.strip() for cell in row.strip("|").split("|")][1:]


def test_the_table_says_what_was_measured_and_what_was_not(tmp_path):
    assert all(cell == MISSING for cell in cells(table(tmp_path), "normalising kernels: calls"))
    result(tmp_path / "a", 1, "NVIDIA H200", kernel_calls=250)
    result(tmp_path / "b", 1, "NVIDIA H100 80GB HBM3", dry_run=True, kernel_calls=4)
    result(tmp_path / "c", 1, "NVIDIA L40S", kernel_calls=249)
    found = table(tmp_path)
    assert cells(found, "normalising kernels: calls") == [MISSING, MISSING, "250", "249"]
    assert cells(found, "**1.") == [MISSING, MISSING, "good", "good"]
    assert found.startswith(f"| | {' | '.join(CARDS)} | NVIDIA L40S |")


def test_the_table_of_the_docs_is_that_of_the_results():
    """`python -m bench.campaign --table bench/results` prints it."""
    assert table(ROOT / "bench" / "results") in (ROOT / "docs" / "benchmarks.md").read_text()
