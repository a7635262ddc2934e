"""The loop around a stage: iterations, numbers, pictures, checkpoints, signals, and the place to go on from.

An iteration that logs and saves nothing waits for nobody. Losses come to the host when the device has them, and votes
on whether to stop are read one iteration late. Only fp16 waits for the device, because its loss scale looks at every
gradient.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from dgfast.config import RunConfig
from dgfast.data.loaders import PairLoader
from dgfast.errors import Diverged, Interrupted, UserError, out_of_memory
from dgfast.run_directory import CHECKPOINTS

from . import checkpoint
from .distributed import Votes, Workers
from .loss_watch import LossWatch
from .stage_log import StageLog, say
from .stages import Stage
from .tracker import Tracker

_NAMED = 40  # images that the message about a loss names


class StopRequest:
    """Remembers SIGINT or SIGTERM, so that the iteration is finished and saved first."""

    signal = 0

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Handle both signals within the context; a second one acts at once."""
        previous = {number: signal.signal(number, self._remember) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _remember(self, number: int, _frame: object) -> None:
        self.signal = number
        signal.signal(number, signal.SIG_DFL)


def run_stage(
    stage: Stage,
    make_loader: Callable[[int], PairLoader],
    iterations: int,
    run: Path,
    config: RunConfig,
    workers: Workers,
    global_batch: int,
    tracker: Tracker,
    picture: Callable[[int], Tensor] | None = None,
) -> None:
    """Bring a stage to its last iteration, from its newest checkpoint or from the start.

    Args:
        stage: its networks are on the device.
        make_loader: first iteration -> loader of this process's batches.
        iterations: where the stage ends.
        run: run directory.
        config: seeds and intervals.
        workers: the processes.
        global_batch: samples per stream and iteration of all processes; a checkpoint of another number is refused.
        tracker: where the numbers and pictures are shown; first process alone.
        picture: iteration -> sample grid [H, W, 3] uint8, every `sample_every` iterations; first process alone.
    Raises:
        Diverged: a loss is not finite; the newest checkpoint is from before it.
        Interrupted: SIGINT, SIGTERM or `stop_after`; the newest checkpoint is of the iteration it stopped after.
        UserError: the checkpoint belongs to another configuration.
        CannotWrite: the disk is full, for example; the newest checkpoint is as it was.
    """
    folder = run / CHECKPOINTS
    read, start = _restore(stage, folder, global_batch)
    if start and workers.first:
        say(f"{stage.name}: going on after iteration {start}")
    workers.same_weights(stage.networks_by_name.values())
    if start >= iterations:
        if start > iterations and workers.first:
            asked = f"more than the {iterations} asked for"
            say(f"{stage.name}: has {start} iterations behind it already, {asked}: left as it is")
        return
    images = global_batch * stage.images_per_sample
    log = StageLog(run, stage.name, start, iterations, images, tracker) if workers.first else None
    loader = make_loader(start)

    writer = checkpoint.Writer(folder, stage.name, read)
    watch = LossWatch()

    def save(done: int) -> None:
        workers.average_statistics(stage.networks_by_name.values())
        if workers.first:
            writer.save(done, {**stage.state_dict(), "global_batch": global_batch})

    def settle() -> None:
        """Wait in all processes until the file is there, so that nobody leaves, or is resumed, before."""
        writer.wait()
        workers.barrier()

    votes = Votes(workers.alone)
    try:
        with StopRequest().listening() as stop:
            for iteration in range(start, iterations):
                # Dropout then draws a function of seed, stage, iteration and rank, of which nothing needs saving.
                torch.manual_seed(_mix(config.seed, stage.seed_bit, iteration, workers.rank))
                watch.add(iteration, stage.step(next(loader), iteration))
                done = iteration + 1
                last = done == iterations or (stage.may_stop_early and done == config.stop_after)
                logging = done % config.log_every == 0 or last
                saving = done % config.checkpoint_every == 0 or last

                waits = logging or saving  # such an iteration waits for the device and for the other processes
                broken, interrupted = votes.cast(watch.broken(wait=waits) is not None, bool(stop.signal), at_once=waits)
                if interrupted and not waits:
                    # A checkpoint is about to be written: find out first whether the last losses were finite.
                    late, _ = votes.cast(watch.broken(wait=True) is not None, False, at_once=True)
                    broken |= late
                if broken:
                    iteration, names = watch.broken(wait=True) or (iteration, ["(of another process)"])
                    raise Diverged(
                        f"stage {stage.name}, iteration {iteration}: loss {', '.join(names)} is not finite;"
                        " the last good checkpoint is kept: resume with lower learning rates or --precision fp32;"
                        f" if it happens again, look at the images that came last: {_last_images(loader, iteration)}"
                    )
                if logging:
                    values = watch.latest()
                    workers.average([values])
                    if log:
                        log.write(iteration, dict(zip(watch.names, values.tolist(), strict=True)))
                if log:
                    log.tick()
                    if picture and (done % config.sample_every == 0 or done == iterations):
                        log.picture(iteration, "samples", picture(done))
                if saving or interrupted:
                    save(done)
                if interrupted or (last and done < iterations):
                    # Also after the last iteration: what follows, the next stage or the evaluation, was not wanted.
                    settle()
                    number = stop.signal or signal.SIGTERM
                    raise Interrupted(
                        number, f"stopped after iteration {done} of {stage.name}; go on with --resume {run}"
                    )
            settle()
    finally:
        loader.close()
        writer.close()
        if log:
            log.close()


def _last_images(loader: PairLoader, iteration: int) -> str:
    """The files of this process's batch, and of the one before it, whose update may have spoilt the weights."""
    batches = [loader.images_of(i) for i in (iteration, iteration - 1) if i >= 0]
    files = list(dict.fromkeys(file for batch in batches for file in batch))
    more = f" and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
    return ", ".join(map(str, files[:_NAMED])) + more


def _restore(stage: Stage, folder: Path, global_batch: int) -> tuple[Path | None, int]:
    """The checkpoint that the stage has taken over, None where there is none, and how many iterations are done."""
    found = checkpoint.latest(folder, stage.name)
    if found is None:
        return None, 0
    path, state = found
    if state.get("global_batch") != global_batch:
        raise UserError(
            f"the checkpoint {path} was made with {state.get('global_batch')} samples per stream and iteration, now"
            f" {global_batch}; expected the same: the batch size times the number of processes must not change"
        )
    try:
        stage.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        if out_of_memory(error):
            raise
        reason = str(error).strip().splitlines()[-1].strip() if str(error).strip() else type(error).__name__
        raise UserError(f"the checkpoint {path} does not fit this configuration ({reason[:160]})") from error
    return path, state["iteration"]


def _mix(seed: int, seed_bit: int, iteration: int, rank: int) -> int:
    """A seed of 63 bits: the low 16 of the run's seed, one of the stage, 16 of the rank, 30 of the iteration.

    Runs whose seeds are 65,536 apart differ in their weights and images, but not in the draws of dropout.
    """
    return ((seed & 0xFFFF) << 47) | (seed_bit << 46) | ((rank & 0xFFFF) << 30) | (iteration & 0x3FFFFFFF)
