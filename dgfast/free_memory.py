"""How much memory the CPU has left for new arrays: one answer for the image cache and for re-ranking."""

import os
from pathlib import Path


def free_memory() -> int:
    """Memory of the CPU that is free for new arrays, within the limit of a container where there is one.

    Returns:
        bytes; where the system does not say, all of the machine's memory.
    """
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
        group = Path("/sys/fs/cgroup")  # the limit of a container; cached files do not count, as they are dropped
        cached = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())["inactive_file"]
        used = int((group / "memory.current").read_text()) - int(cached)
        return min(free, int((group / "memory.max").read_text()) - used)
    except (OSError, KeyError, ValueError):  # no Linux, no such group, or no limit
        return free
