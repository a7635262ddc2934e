"""What `dgfast profile` says: figures that can be checked without a clock, traces read right, sweeps, mistakes."""

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from dgfast.commands import cli, train
from dgfast.commands import profile as command
from dgfast.config import PRESETS
from dgfast.errors import UserError
from dgfast.profiling import report as report_module
from dgfast.profiling.measure import Iterations, Measurement, count, first_full_iteration, search
from dgfast.profiling.peaks import card_peak
from dgfast.profiling.trace import PHASES, STEPS, named, read
from dgfast.training.frozen import frozen
from dgfast.training.step import weights_at

SMALL = [
    *("--image-height", "48", "--image-width", "48", "--parts", "2", "--embedding", "16", "--structure-width", "2"),
    *("--structure-blocks", "1", "--decoder-blocks", "2", "--style-hidden", "8", "--discriminator-width", "4"),
    *("--batch-size", "2", "--steps", "1", "--warmup-steps", "1", "--threads", "1", "--peak-tflops", "0.5"),
    *("--label-style", "soft"),  # with the quick start's own label nobody asks the teacher
]


def measured(folder: Path, *words: str) -> dict:
    file = folder / "figures.json"
    command.main([*SMALL, "--json", str(file), *words])
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("profile")
    figures = measured(folder, "--trace", str(folder / "trace.json"))
    figures["files"] = sorted(path.name for path in folder.iterdir())
    figures["ranges"] = {e["name"] for e in json.loads((folder / "trace.json").read_text())["traceEvents"]}
    return figures


def test_figures_fit_together(report):
    named_ones = {"images_per_s", "gflop_per_image", "aten_calls_per_step", "peak_gib", "mfu", "phases"}
    assert named_ones | {"device", "precision", "versions", "batch", "launches_per_step"} <= set(report)
    seconds = report["ms_per_step"] / 1000
    assert report["batch"] == 2 and report["images_per_step"] == 4
    assert report["images_per_s"] == pytest.approx(4 / seconds)
    assert report["tflops"] == pytest.approx(4 * report["gflop_per_image"] / seconds / 1000)
    assert report["mfu"] == pytest.approx(report["tflops"] / 0.5) and report["peak_source"] == "--peak-tflops"
    assert 0.1 < report["before_gib"] <= report["peak_gib"] + 0.01 < 5
    assert report["kernels"].keys() == {
        f"{operation}: tensor on the cpu" for operation in ("adain", "layer_norm", "l1_kl_loss")
    }


def test_phases_are_the_whole_iteration(report):
    phases = report["phases"]
    assert tuple(phases) == PHASES and report["phases_of"] == "host"
    assert sum(phase["ms"] for phase in phases.values()) == pytest.approx(report["ms_per_step"])
    assert sum(phase["share"] for phase in phases.values()) == pytest.approx(1)
    assert all(
        phases[name]["ms"] > 0 for name in ("data", "E_a", "E_s", "G", "D", "teacher", "backward", "optimizer", "other")
    )
    assert phases["communication"]["ms"] == phases["idle"]["ms"] == 0
    assert phases["backward"]["share"] > phases["optimizer"]["share"]


def test_files_are_whole_and_nothing_else_is_left(report):
    assert report["files"] == ["figures.json", "trace.json"]
    assert {"E_a", "E_s", "G", "D", "teacher", "data", STEPS} <= report["ranges"]


def test_operations_are_those_counted_by_hand():
    weight = torch.randn(5, 3, 3, 3, requires_grad=True)
    image = torch.randn(2, 3, 6, 4, requires_grad=True)

    def step(batch, iteration):
        out = F.conv2d(image, weight)  # [2, 5, 4, 2]
        (gradient,) = torch.autograd.grad(out.square().sum(), image, create_graph=True)
        gradient.square().sum().backward()

    work = count(Iterations(SimpleNamespace(step=step), iter([None]), 0, torch.device("cpu"), lambda: None))
    once = 2 * (2 * 5 * 4 * 2) * (3 * 3 * 3)
    # forward; its gradient at the image; that gradient's two derivatives (at its input and the weight); through the
    # first: the convolution's own two derivatives
    assert work.flops == 6 * once
    assert work.calls > 6


def test_work_per_image_hardly_depends_on_the_batch(report, tmp_path):
    larger = measured(tmp_path, "--batch-size", "3")
    assert larger["batch"] == 3 and larger["images_per_step"] == 6
    # but for what is computed from the weights alone, once an iteration
    assert larger["gflop_per_image"] <= report["gflop_per_image"]
    assert larger["gflop_per_image"] == pytest.approx(report["gflop_per_image"], rel=0.01)
    assert larger["aten_calls_per_step"] == report["aten_calls_per_step"]


def test_sweep_up_to_a_limit(tmp_path, capsys):
    swept = measured(tmp_path, "--stage", "teacher", "--sweep", "--max-batch", "21")
    rows = {row["batch"]: row["images_per_s"] for row in swept["sweep"]}
    assert list(rows) == [8, 16, 20] and swept["largest_batch"] == 20 and swept["largest_is_limit"]
    assert swept["best_batch"] == swept["batch"] == swept["images_per_step"] == max(rows, key=rows.get)
    assert "largest that fits: 20 or more\n" in capsys.readouterr().out


def test_a_batch_that_does_not_fit(monkeypatch, tmp_path, capsys):
    fits, timed = 20, report_module.timed

    def limited(iterations, *rest):
        if 4 * len(next(iterations.loader).a.label) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand more")
        return timed(iterations, *rest)

    monkeypatch.setattr(report_module, "timed", limited)
    swept = measured(tmp_path, "--stage", "teacher", "--sweep", "--max-batch", "100")
    assert [row["batch"] for row in swept["sweep"]] == [8, 16, 20, 24, 32]
    assert [row["images_per_s"] is None for row in swept["sweep"]] == [False, False, False, True, True]
    assert swept["largest_batch"] == 20 and not swept["largest_is_limit"]
    out = capsys.readouterr().out
    assert "largest that fits: 20\n" in out and "does not fit" in out

    files = [tmp_path / "absent.json", tmp_path / "absent.trace"]
    words = [*SMALL, "--stage", "teacher", "--json", str(files[0]), "--trace", str(files[1])]
    with pytest.raises(UserError, match="a batch of 32 does not fit .*--sweep") as caught:
        command.main([*words, "--teacher-batch-size", "32"])
    assert "\n" not in str(caught.value) and not any(file.exists() for file in files)
    fits = 0
    with pytest.raises(UserError, match="not even a batch of 8 fits"):
        measured(tmp_path, "--stage", "teacher", "--sweep")


def test_any_other_error_is_not_taken_for_a_lack_of_memory(monkeypatch, tmp_path):
    def broken(*_):
        raise RuntimeError("sizes do not match")

    monkeypatch.setattr(report_module, "timed", broken)
    for words in ([], ["--sweep"]):
        with pytest.raises(RuntimeError, match="sizes do not match"):
            measured(tmp_path, "--stage", "teacher", *words)


@pytest.mark.parametrize(
    ("fits", "unit", "limit", "tried"),
    [
        (13, 1, None, [2, 4, 8, 12, 13, 14, 16]),
        (100, 1, 8, [2, 4, 8]),
        (100, 1, 11, [2, 4, 8, 11]),
        (100, 1, 2, [2]),
        (20, 4, None, [8, 16, 20, 24, 32]),
        (100, 4, 30, [8, 16, 28]),
        (1, 1, None, [2]),
        (9, 3, 30, [6, 9, 12]),
    ],
)
def test_search(fits, unit, limit, tried):
    asked = []

    def measure(size):
        asked.append(size)
        return "fine" if size <= fits else None

    assert list(search(measure, unit, limit)) == sorted(asked) == tried


def trace_file(folder: Path, events: list[tuple]) -> Path:
    """(category, name, start, length in microseconds, correlation, thread)"""
    listed = [
        {
            "ph": "X",
            "cat": cat,
            "name": name,
            "ts": start,
            "dur": length,
            "tid": thread,
            "args": {"correlation": number},
        }
        for cat, name, start, length, number, thread in events
    ]
    file = folder / "trace.json"
    file.write_text(json.dumps({"traceEvents": [{"ph": "M", "name": "process_name"}, *listed]}))
    return file


def nonzero(phases: dict) -> dict:
    return {name: ms for name, ms in phases.items() if ms}


HOST = [
    ("user_annotation", STEPS, 1000, 10_000, 0, 1),
    ("user_annotation", "data", 1000, 1000, 0, 1),
    ("user_annotation", "G", 2000, 2000, 0, 1),
    ("user_annotation", "Optimizer.step#Adam.step", 2000, 2000, 0, 1),
    ("cpu_op", "autograd::engine::evaluate_function: ConvolutionBackward0", 4000, 500, 0, 1),  # the penalty's
    ("user_annotation", "backward", 5000, 4000, 0, 1),
    ("cpu_op", "autograd::engine::evaluate_function: ConvolutionBackward0", 5000, 2000, 0, 2),
    ("user_annotation", "E_s", 5500, 500, 0, 2),  # computed again within the backward pass
    ("user_annotation", "gloo:all_reduce", 6000, 2500, 0, 3),
    ("user_annotation", "optimizer", 9000, 1000, 0, 1),
    ("user_annotation", "communication", 9500, 1000, 0, 1),
    ("user_annotation", "G", 20_000, 1000, 0, 1),  # after the last iteration
]


def test_reading_a_host_trace(tmp_path):
    found = read(trace_file(tmp_path, HOST), 2)
    assert not found.device and found.launches is None and found.ms == 5
    assert nonzero(found.phases) == pytest.approx(
        # transfer: 7000 to 8500, where no backward node runs, and the range that says so, 9500 to 10500
        {"data": 0.5, "G": 1, "E_s": 0.25, "backward": 1.25, "optimizer": 0.25, "communication": 1.25, "other": 0.5}
    )


def test_reading_a_device_trace(tmp_path):
    work = [
        ("cuda_runtime", "cudaMemcpyAsync", 1500, 10, 1, 1),
        ("gpu_memcpy", "Memcpy HtoD", 1800, 100, 1, 7),
        ("cuda_runtime", "cudaLaunchKernel", 2500, 10, 2, 1),
        ("kernel", "conv", 3000, 3000, 2, 7),  # runs on while the host is elsewhere: G's all the same
        ("cuda_driver", "cuLaunchKernelEx", 5100, 10, 3, 2),  # by autograd's thread
        ("kernel", "conv backward", 6000, 1000, 3, 7),
        ("cuda_runtime", "cudaLaunchKernelExC", 5200, 10, 4, 2),
        ("kernel", "ncclDevKernel_AllReduce", 5500, 2500, 4, 9),  # a millisecond and a half of it are hidden
        ("cuda_runtime", "cudaGraphLaunch", 10_600, 10, 5, 1),
        ("kernel", "first of a graph", 10_700, 100, 5, 7),
        ("kernel", "second of a graph", 10_800, 100, 5, 7),
        ("kernel", "launched before", 1000, 100, 77, 7),
    ]
    found = read(trace_file(tmp_path, [*HOST, *work]), 1)
    assert found.device and found.launches == 4
    assert nonzero(found.phases) == pytest.approx(
        {
            "data": 0.9,  # the copy, and the GPU's pauses while the host is there
            "G": 3,
            "backward": 1,
            "communication": 1,
            "idle": 3.8,  # 2000 to 3000, 8000 to 10700, 10900 to 11000
            "other": 0.3,
        }
    )


def test_ranges_of_frozen_failing_and_compiled_networks(tmp_path):
    class Fails(nn.Module):
        def forward(self, x):
            raise ValueError("no")

    plain, compiled, fails = nn.Linear(2, 2), nn.Linear(2, 2), Fails()
    compiled.compile(backend="eager")
    x = torch.ones(1, 2)
    compiled(x)
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as trace:
        with named({"G": plain, "D": compiled, "E_s": fails}), record_function(STEPS):
            frozen(plain)(x)
            compiled(x)
            with pytest.raises(ValueError, match="no"):
                fails(x)
            plain(x)
        plain(x), compiled(x)  # outside: no ranges
    file = tmp_path / "trace.json"
    trace.export_chrome_trace(str(file))
    ranges = [e for e in json.loads(file.read_text())["traceEvents"] if e.get("cat") == "user_annotation"]
    ranges = sorted((e["ts"], e["name"], e["ts"] + e["dur"]) for e in ranges if e["name"] in PHASES)
    assert [name for _, name, _ in ranges] == ["G", "D", "E_s", "G"]
    assert all(end <= start for (_, _, end), (start, _, _) in zip(ranges, ranges[1:], strict=False))
    assert not plain._forward_hooks and not plain._forward_pre_hooks


@pytest.mark.parametrize(
    ("name", "precision", "tf32", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", False, 312),
        ("NVIDIA A100 80GB PCIe", "fp32", True, 156),
        ("NVIDIA A10", "fp16", False, 125),
        ("NVIDIA H100 80GB HBM3", "bf16", False, 989.4),
        ("NVIDIA H100 PCIe", "bf16", False, 756),
        ("NVIDIA H100 NVL", "bf16", False, 835.5),
        ("NVIDIA H200", "fp32", False, 66.9),
        ("NVIDIA L40S", "bf16", False, 362),
        ("NVIDIA GeForce RTX 3090", "bf16", False, 71),
        ("NVIDIA GeForce RTX 3090 Ti", "bf16", False, 80),
        ("Tesla V100-SXM2-16GB", "fp32", True, 15.7),  # has no TF32
        ("Tesla V100-SXM2-16GB", "bf16", False, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", False, None),
        ("NVIDIA GeForce RTX 4090 D", "bf16", False, None),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", "bf16", False, None),
        ("NVIDIA A10G", "bf16", False, None),
    ],
)
def test_peaks_of_cards(name, precision, tf32, peak):
    assert card_peak(name, precision, tf32) == peak


def test_an_unknown_card_is_named_and_the_way_out(monkeypatch, report):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Nameless 1")
    workers = SimpleNamespace(device=torch.device("cuda"))
    peak, source = report_module._peak(Measurement(), PRESETS["quickstart"], workers, "bf16")
    assert (
        peak is None and source == "unknown: NVIDIA Nameless 1 in bf16 is not in the table of cards; pass --peak-tflops"
    )
    assert source in report_module.table({**report, "peak_tflops": peak, "peak_source": source, "mfu": None})


def test_all_losses_are_on():
    for name in ("quickstart", "market1501"):
        config = PRESETS[name].loss
        first = first_full_iteration(config)
        assert weights_at(config, first) == weights_at(config, 10**9)
        assert weights_at(config, first - 10) != weights_at(config, 10**9)


def test_made_up_people_stand_for_the_training_set():
    _, config = command.parse(["--preset", "market1501"])
    assert config.data.data_root is None and command._made_up_data(config).num_classes == 751
    _, config = command.parse(["--synthetic-train-identities", "9", "--steps", "3", "--milestones", "4", "5"])
    assert command._made_up_data(config).num_classes == 9 and config.optim.milestones == (4, 5)


def test_loaded_images_and_the_teacher(market, tmp_path):
    words = ["--data-root", str(market), "--dataset", "market1501", "--loader", "torchvision", "--loader-workers", "0"]
    loaded = measured(tmp_path, *words, "--stage", "teacher", "--teacher-batch-size", "8")
    assert loaded["batch"] == loaded["images_per_step"] == 8 and loaded["batches"] == "market1501"
    assert {n for n, phase in loaded["phases"].items() if phase["ms"]} == {
        "data",
        "teacher",
        "backward",
        "optimizer",
        "other",
    }
    assert loaded["phases"]["data"]["share"] > 1e-3


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--steps", "0"], "--steps is 0; expected a number from 1"),
        (["--warmup-steps", "0"], "--warmup-steps is 0"),
        (["--max-batch", "1"], "--max-batch is 1; expected at least 2"),
        (["--accumulate", "3", "--batch-size", "6", "--max-batch", "5"], "expected at least 6"),
        (["--peak-tflops", "0"], "--peak-tflops is 0"),
        (["--json", "/nowhere/figures.json"], "--json /nowhere/figures.json cannot be written"),
        (["--trace", "/"], "--trace / cannot be written"),
        (["--image-height", "40"], "--image-height is 40"),
        (["--preset", "mars"], "--preset is 'mars'; expected one of"),
        (["--preset", "market1501", "--data-root", "/nowhere"], "/nowhere does not exist"),
    ],
)
def test_mistakes(words, line):
    with pytest.raises(UserError, match=line) as caught:
        command.main(words)
    assert "\n" not in str(caught.value)


def test_flags_of_training_and_no_others():
    measurement, config = command.parse(["--batch-size=6", "--sweep", "--precision", "bf16"])
    assert (
        measurement.sweep
        and config == train.parse(["--batch-size", "6", "--precision", "bf16", "--loader", "torchvision"]).config
    )
    with pytest.raises(UserError, match="--no-such-flag is no flag of dgfast profile"):
        command.parse(["--no-such-flag"])
    assert "profile" in cli.COMMANDS


def test_two_processes(tmp_path):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "dgfast.profile"]
    file = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, *launch, *SMALL, "--json", str(file)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    assert done.stdout.count("images/s") == 1
    figures = json.loads(file.read_text())
    assert figures["processes"] == 2 and figures["images_per_step"] == 8
    assert figures["images_per_s"] == pytest.approx(8000 / figures["ms_per_step"])


def test_a_sweep_is_of_one_device(monkeypatch, tmp_path):
    several = nullcontext(SimpleNamespace(alone=False, world_size=2, device=torch.device("cpu")))
    monkeypatch.setattr(command, "Workers", lambda: several)
    with pytest.raises(UserError, match="--sweep looks for the best batch of one device, found 2 processes"):
        measured(tmp_path, "--sweep")
