"""A small run is disturbed at random, again and again, and must end with the same bits each time: docs/reliability.md.

    python -m tools.soak --minutes 60 --seed 1

Each training process is a fork of this one, which has imported everything: a start takes no time, and hundreds of
disturbances fit into an hour.
"""

import argparse
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

from dgfast import launcher
from dgfast.checksums import Damaged
from dgfast.commands import train, verify
from dgfast.training import checkpoint
from tests import tiny

STAGES = {"teacher": 8, "dgnet": 12}  # iterations
SETTINGS = {
    "teacher_iterations": STAGES["teacher"],
    "teacher_milestones": (5,),
    "iterations": STAGES["dgnet"],
    "milestones": (9,),
}
RESULTS = ("teacher.safetensors", "model.safetensors")
# What a disturbed process may leave with: the signal itself where it hit before a handler was there, or 0 where the run
# was quicker.
STATUS = {
    "kill": (0, -signal.SIGKILL),
    "term": (0, launcher.STOPPED + signal.SIGTERM, -signal.SIGTERM),
    "interrupt": (0, launcher.STOPPED + signal.SIGINT, -signal.SIGINT),
    "full disk": (0, launcher.USER_ERROR),
    "undisturbed": (0,),
}
SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "interrupt": signal.SIGINT}
WEIGHTS = {"kill": 5, "term": 2, "interrupt": 2, "full disk": 3, "undisturbed": 1}


class Broken(Exception):
    """A promise that was not kept."""


def child(words: list[str], largest_file: int | None, out: int) -> None:
    """In a forked process: train, as the command line would, and leave with its status.

    Args:
        words: flags of `dgfast train`.
        largest_file: bytes that a file may have, in place of a full disk; None: any number.
        out: descriptor for all that is said.
    """
    status = 1
    try:
        os.dup2(out, 1)
        os.dup2(out, 2)
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

        def command() -> None:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, list(SIGNALS.values()))
            train.main(words)

        launcher.run(command)
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else 1
    except KeyboardInterrupt:
        status = launcher.STOPPED + signal.SIGINT
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def start(words: list[str], number: int | None = None, after: float = 0.0, largest_file: int | None = None):
    """Train in a forked process, and wait for its end.

    Args:
        words: flags of `dgfast train`.
        number: a signal to send; None sends none.
        after: seconds after which it is sent.
        largest_file: see `child`.
    Returns:
        the process's status, negative after a signal that killed it; and what it said.
    """
    reading, writing = os.pipe()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    pid = os.fork()
    if pid == 0:
        child(words, largest_file, writing)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    os.close(writing)
    due, said = time.monotonic() + after, b""
    try:
        while True:
            wait = max(0.0, due - time.monotonic()) if number is not None else None
            ready, _, _ = select.select([reading], [], [], wait)
            if not ready and number is not None:
                os.kill(pid, number)
                number = None
            elif ready:
                some = os.read(reading, 2**16)
                if not some:
                    break
                said += some
    finally:
        os.close(reading)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status, said.decode(errors="replace").replace("\r", "\n")


def damage(run: Path, draw: random.Random) -> str | None:
    """Change a file of the run as a bad disk or a careless hand would; another sound checkpoint of the stage is left.

    Args:
        run: run directory.
        draw: random numbers.
    Returns:
        the file, relative to the run; None where there was nothing to damage.
    """
    candidates = [run / "teacher.safetensors", run / "metrics.jsonl"]
    for stage in STAGES:
        files = checkpoint.checkpoints(run / "checkpoints", stage)
        sound = [file for file in files if is_sound(file)]
        if len(sound) >= 2:
            candidates += [draw.choice(sound), sound[-1]]
    candidates = [file for file in candidates if file.is_file() and file.stat().st_size]
    if not candidates:
        return None
    file = draw.choice(candidates)
    content = bytearray(file.read_bytes())
    if file.name == "metrics.jsonl":
        content += b'{"stage": "dgnet", "itera'
    elif draw.random() < 0.5:
        del content[draw.randrange(len(content)) :]
    else:
        bit = draw.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)
    return str(file.relative_to(run))


def is_sound(file: Path) -> bool:
    """Whether a checkpoint is what was written.

    Args:
        file: a checkpoint.
    """
    try:
        checkpoint.verify(file)
    except (Damaged, OSError):
        return False
    return True


def expect(kept: bool, promise: str, *facts: object) -> None:
    """Raise `Broken` unless a promise was kept.

    Args:
        kept: whether it was.
        promise: in words.
        facts: what was found.
    """
    if not kept:
        raise Broken("\n".join([f"NOT KEPT: {promise}", *map(str, facts)]))


def one_run(root: Path, out: Path, expected: dict[str, bytes], seconds: float, draw: random.Random) -> Counter[str]:
    """Bring a run to its end through disturbances, and compare its end with the undisturbed one's.

    Args:
        root: data set.
        out: folder of the run directory.
        expected: content of the files in `RESULTS`.
        seconds: that the undisturbed run took.
        draw: random numbers.
    Returns:
        kind of disturbance -> how often.
    Raises:
        Broken: a promise was not kept.
    """
    run, counts = out / "run", Counter[str]()
    fresh = tiny.flags(tiny.config(root, out, **SETTINGS))
    damaged: set[str] = set()
    while not (run / "report.json").exists():
        begun = (run / "config.json").exists()
        kind = draw.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        largest = int(10 ** draw.uniform(2.5, 6.5)) if kind == "full disk" else None
        words = ["--resume", str(run)] if begun else fresh
        lying_about = set(out.rglob("*.tmp"))
        status, said = start(words, SIGNALS.get(kind), draw.uniform(0, 1.1 * seconds), largest)
        counts[kind] += 1
        expect(status in STATUS[kind], f"{kind}: status {STATUS[kind]}", f"found {status}", said)
        expect("Traceback" not in said, f"{kind}: no traceback", said)
        if kind != "kill":
            left = set(out.rglob("*.tmp")) - lying_about
            expect(not left, f"{kind}: nothing half-written is left", *left, said)
        if not (run / "config.json").exists():
            continue
        found = verify.examine(run)
        if kind in ("kill", "full disk") and "metrics.jsonl" in found.wrong:
            damaged.add("metrics.jsonl")  # half a line, until the stage opens the file again
        unexpected = found.wrong.keys() - damaged
        expect(not unexpected and not found.obstacles, f"{kind}: the run is sound", found.text(), said)
        damaged &= found.wrong.keys()
        if draw.random() < 0.4 and (hit := damage(run, draw)):
            damaged.add(hit)
            counts["damaged file"] += 1
    for name in RESULTS:
        if name in damaged:  # after the end nobody writes it again
            expect(start(["--resume", str(run)])[0] == 0, "a damaged result is written again")
        expect((run / name).read_bytes() == expected[name], f"{name} has the bits of an undisturbed run", dict(counts))
    if "metrics.jsonl" not in damaged:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        numbers = [(line["stage"], line["iteration"]) for line in lines]
        whole = [(stage, iteration) for stage, number in STAGES.items() for iteration in range(number)]
        # A stage whose last checkpoint was damaged has done its last iterations once more, after the next stage began.
        expect(sorted(numbers) == sorted(whole), "metrics.jsonl has each iteration once", numbers)
    return counts


def soak(go_on: Callable[[int, float], bool], seed: int) -> tuple[int, Counter[str]]:
    """Disturb runs until it is enough.

    Args:
        go_on: (runs that are done, seconds that have passed) -> whether another is begun.
        seed: of the disturbances. Their moments follow the clock, so that no two soaks are alike.
    Returns:
        number of runs; kind of disturbance -> how often.
    Raises:
        Broken: a promise was not kept; the run directory is left where it is.
    """
    torch.set_num_threads(1)
    began, draw, runs, counts = time.monotonic(), random.Random(seed), 0, Counter[str]()
    folder = Path(tempfile.mkdtemp(prefix="dgfast-soak-"))
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    root = tiny.market(folder / "market")
    before = time.monotonic()
    status, said = start(tiny.flags(tiny.config(root, folder / "undisturbed", **SETTINGS)))
    expect(status == 0, "an undisturbed run ends well", said)
    seconds = time.monotonic() - before
    expected = {name: (folder / "undisturbed" / "run" / name).read_bytes() for name in RESULTS}
    while go_on(runs, time.monotonic() - began):
        out = folder / f"{runs:05d}"
        try:
            counts += one_run(root, out, expected, seconds, draw)
        except Broken as broken:
            raise Broken(f"{broken}\n(seed {seed}, run {runs}; it is left in {out})") from None
        shutil.rmtree(out)
        runs += 1
    shutil.rmtree(folder)
    return runs, counts


def main() -> None:
    """Soak as the command line says, and print what was survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0, help="no run is begun after so long (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the disturbances (default: 0)")
    asked = parser.parse_args()
    try:
        runs, counts = soak(lambda _, seconds: seconds < 60 * asked.minutes, asked.seed)
    except Broken as broken:
        sys.exit(str(broken))
    told = ", ".join(f"{kind} {number}" for kind, number in sorted(counts.items()))
    print(f"soak: {runs} runs with {counts.total()} starts and damages ({told}): all ended with the same bits")


if __name__ == "__main__":
    main()
