"""How a run under `torchrun` ends: the user's mistake is one line and status 2 there, too.

torchrun answers any worker that fails with a report, a traceback and status 1. It offers one place where a package may
take part, the entry points of the group "torchrun.handlers" (they may add rendezvous backends); `take_part` is ours. In
a process that launches anything but dgfast it does nothing.
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn

from dgfast.errors import Diverged, Interrupted, UserError

USER_ERROR = 2
_PASSED_ON = (1, USER_ERROR)  # statuses after which the worker itself has said all there is to say


def run(command: Callable[[], None]) -> NoReturn:
    """Run an entry point and leave with its status: 0; 2 for the user's mistakes; 1 for divergence; 128 + signal when
    stopped."""
    try:
        command()
    except UserError as error:
        _leave(f"dgfast: {error}", USER_ERROR)
    except Diverged as error:
        _leave(f"dgfast: {error}", 1)
    except Interrupted as error:
        _leave(f"dgfast: {error}", 128 + error.signal)
    except KeyboardInterrupt:
        _leave("dgfast: interrupted", 128 + signal.SIGINT)
    except Exception:
        _let_the_first_speak()  # most errors of the others are that the first has left
        raise
    sys.exit(0)


def _leave(line: str, status: int) -> NoReturn:
    _let_the_first_speak()
    print(line, file=sys.stderr, flush=True)
    os._exit(status) if "TORCHELASTIC_RUN_ID" in os.environ else sys.exit(status)


def _let_the_first_speak() -> None:
    """The first process says what is wrong; when it leaves, torchrun ends the others before they repeat it."""
    if int(os.environ.get("RANK", "0")):
        time.sleep(5)


def take_part() -> Callable[..., Any]:
    """Called by torch.distributed.elastic when it is imported; see the file's first lines."""
    if _launches_dgfast(sys.argv):
        logging.getLogger("torch.distributed.elastic.multiprocessing.api").addFilter(_said_already)
        logging.getLogger("torch.distributed.elastic.agent.server.api").setLevel(logging.ERROR)
        sys.excepthook = _hook
        # Processes that are started again would find the addresses of those before in the store that torch's rendezvous
        # keeps for them since 2.5 (its issue 135712), and wait for the dead. Without sharing, each start gets a store
        # of its own.
        os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    return _no_rendezvous


def _launches_dgfast(argv: list[str]) -> bool:
    launcher = os.path.basename(argv[0]) if argv else ""
    modules = [argv[i + 1] for i, word in enumerate(argv[:-1]) if word in ("-m", "--module")]
    return launcher in ("torchrun", "run.py", "-m") and any(m.split(".")[0] == "dgfast" for m in modules)


def _said_already(record: logging.LogRecord) -> bool:
    if record.msg.startswith("Sending process"):  # to end the other processes: nothing that a user has to know
        return False
    return not (record.msg.startswith("failed (exitcode") and record.args and record.args[0] in _PASSED_ON)


def _hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if kind.__name__ == "SignalException":
        raise SystemExit(128 + error.sigval)
    if kind.__name__ == "ChildFailedError":
        _, failure = error.get_first_failure()
        status = failure.exitcode
        if status in _PASSED_ON or status > 128:
            raise SystemExit(status)
    sys.__excepthook__(kind, error, traceback)


def _no_rendezvous(*_: Any) -> NoReturn:
    raise UserError("dgfast is no rendezvous backend; use --rdzv-backend c10d")
