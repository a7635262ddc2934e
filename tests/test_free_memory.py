"""The memory that is left, as the system and a container's limit have it."""

from pathlib import Path

from dgfast.free_memory import free_memory


def test_free_memory_is_what_the_system_and_the_container_leave(monkeypatch):
    files = {"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:   8 kB\n"}

    def read(path):
        if str(path) not in files:
            raise FileNotFoundError(path)
        return files[str(path)]

    monkeypatch.setattr(Path, "read_text", read)
    free = free_memory()
    assert free == 8 * 1024
    group = "/sys/fs/cgroup/memory."
    files |= {group + "max": "max\n", group + "current": "4096\n", group + "stat": "anon 3000\ninactive_file 1096\n"}
    assert free_memory() == 8 * 1024
    files[group + "max"] = "5000\n"
    assert free_memory() == 2000
    files.clear()
    assert free_memory() > 2**20
