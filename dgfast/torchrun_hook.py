"""How `torchrun -m dgfast...` ends: with the worker's own status, and without a report where the worker has spoken.

torchrun answers any failing worker with a report, a traceback and status 1. It offers one place where a package may
take part: the entry points of the group "torchrun.handlers", which are meant to add rendezvous backends. `take_part` is
named there. In a process that launches anything but dgfast it changes nothing.
"""

import logging
import os
import re
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn

from dgfast.errors import UserError
from dgfast.launcher import DIVERGED, STOPPED, USER_ERROR

_REPORTED = (DIVERGED, USER_ERROR)  # statuses of a worker that has itself said all there is to say


def take_part() -> Callable[..., Any]:
    """Called by torch.distributed.elastic when it is imported, in every process that imports it.

    Returns:
        a rendezvous backend, as torch expects of a handler; asking for it is a mistake.
    """
    if _launches_dgfast(sys.argv):
        logging.getLogger("torch.distributed.elastic.multiprocessing.api").addFilter(_is_news)
        logging.getLogger("torch.distributed.elastic.agent.server.api").setLevel(logging.ERROR)
        sys.excepthook = _leave_with_the_workers_status
        # Since 2.5 torch's rendezvous keeps the workers' addresses in a store that outlives them (pytorch issue
        # 135712). Workers that are started again would find the addresses of the dead there and wait for them. Without
        # sharing, each start gets a store of its own.
        os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    return _no_rendezvous


def _launches_dgfast(argv: list[str]) -> bool:
    launcher = os.path.basename(argv[0]) if argv else ""
    modules = [argv[i + 1] for i, word in enumerate(argv[:-1]) if word in ("-m", "--module")]
    return launcher in ("torchrun", "run.py", "-m") and any(m.split(".")[0] == "dgfast" for m in modules)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a log record tells a user something new."""
    if record.msg.startswith("Sending process"):  # it ends the other processes
        return False
    arguments = record.args if isinstance(record.args, tuple) else ()
    return not (record.msg.startswith("failed (exitcode") and arguments and arguments[0] in _REPORTED)


def _leave_with_the_workers_status(kind: type[BaseException], error: Any, traceback: TracebackType | None) -> None:
    """The agent's `sys.excepthook`: torch's report only where the worker could not speak for itself."""
    if kind.__name__ == "SignalException":
        raise SystemExit(STOPPED + error.sigval)
    if kind.__name__ == "ChildFailedError":
        _, failure = error.get_first_failure()
        status = failure.exitcode
        if status in _REPORTED or status > STOPPED:
            raise SystemExit(status)
    if kind.__name__ == "DistNetworkError" and (taken := re.search(r"port: (\d+).*EADDRINUSE", str(error))):
        print(
            f"dgfast: port {taken[1]} of this machine is taken, as by another torchrun; expected a free one: "
            "torchrun --standalone looks for it, --master-port names it",
            file=sys.stderr,
        )
        raise SystemExit(USER_ERROR)
    sys.__excepthook__(kind, error, traceback)


def _no_rendezvous(*_: Any) -> NoReturn:
    raise UserError("dgfast is no rendezvous backend; expected one of torch's: use --rdzv-backend c10d")
