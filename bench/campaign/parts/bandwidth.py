"""Part 9: bandwidth of the kernels."""

import json
import tempfile
from pathlib import Path

from ..record import Record
from .common import run_tests


def bandwidth(record: Record) -> None:
    """The benchmarks of the kernels: they compare with the reference first, then time graphs beyond the L2 cache."""
    cases = (
        ("adain", "bench/bench_adain.py", "48 and bf16 and both", "eager and forward and block and 8", 1.3),
        ("l1_kl", "bench/bench_l1_kl.py", "64 and bf16 and both", "eager and both", 1.5),
    )
    if record.dry_run:
        few = " or ".join(f"{Path(file).stem} and {choice}" for _, file, _, choice, _ in cases)
        run_tests(record, "results alone", *(file for _, file, *_ in cases), "-k", few)
        record.left_out("times: they are those of a GPU")
        return
    for name, file, chosen, _, faster in cases:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "times.json"
            run_tests(record, file, file, "--benchmark", f"--benchmark-json={target}", "-k", chosen)
            times = json.loads(target.read_text())["benchmarks"] if target.is_file() else []
        rows = {one["name"]: one["extra_info"] for one in times if "microseconds_a_call" in one["extra_info"]}
        shares = [row["fraction_of_copy_bandwidth"] for case, row in rows.items() if "triton" in case]
        ratios = [
            rows[case.replace("triton", "compile")]["microseconds_a_call"] / row["microseconds_a_call"]
            for case, row in rows.items()
            if "triton" in case and case.replace("triton", "compile") in rows
        ]
        if not shares or not ratios:
            record.holds(f"{name} was timed", False, f"{len(times)} benchmarks, {len(rows)} with times a call")
            continue
        for case, row in rows.items():
            record.figure(f"{case}, us", row["microseconds_a_call"])
        record.figure(f"{name}: copy bandwidth", min(shares))
        record.figure(f"{name}: compile", min(ratios))
        record.aim(f"{name}, share of the copy bandwidth", min(shares), 0.85)
        record.aim(f"{name}, times as fast as torch.compile", min(ratios), faster)
