"""Imports go one way, as docs/architecture.md says: what is below knows nothing of what is above."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the bottom to the top. A room may import rooms below it; of those in one row, none may import another.
ROWS = (
    ("kernels", "errors", "_rerank"),
    ("checksums", "files", "free_memory", "launcher", "ranges"),
    ("config", "torchrun_hook", "pedestrians"),
    ("run_directory", "data"),
    ("models",),
    ("training",),
    ("retrieval", "synthesis", "profiling", "ablation"),
    ("model_card",),
    ("inference",),
    ("reporting", "export"),
    ("commands",),
    ("train", "profile"),  # the doors for torchrun
)
LEVEL = {room: level for level, row in enumerate(ROWS) for room in row}


def sources() -> dict[str, Path]:
    """Module name -> file, kernels/ under the name that it is installed as."""
    files = {**{p: ("dgfast", "dgfast") for p in ROOT.glob("dgfast/**/*.py")}}
    files |= {p: ("kernels", "dgfast.kernels") for p in ROOT.glob("kernels/**/*.py")}
    found = {}
    for file, (folder, package) in files.items():
        parts = file.relative_to(ROOT / folder).with_suffix("").parts
        name = ".".join((package, *(parts[:-1] if parts[-1] == "__init__" else parts)))
        found[name] = file
    return found


def imports(name: str, source: str, is_package: bool) -> set[str]:
    """The full names of everything that a module imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = name.split(".")[: len(name.split(".")) - node.level + is_package] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def room_of(name: str) -> str | None:
    """The room of dgfast that a full name lies in; None outside, and for dgfast itself."""
    parts = name.split(".")
    return parts[1] if parts[0] == "dgfast" and len(parts) > 1 and parts[1] in LEVEL else None


def wrong_arrows(modules: dict[str, tuple[str, bool]]) -> list[str]:
    """Imports that do not go down. `modules`: name -> source, whether it is a package."""
    wrong = []
    for name, (source, is_package) in modules.items():
        own = room_of(name)
        if own is None:  # dgfast/__init__.py: the public functions, imported when they are called
            continue
        for target in imports(name, source, is_package):
            other = room_of(target)
            if other not in (None, own) and LEVEL[other] >= LEVEL[own]:
                wrong.append(f"{name} imports {target}")
    return wrong


def circles(modules: dict[str, tuple[str, bool]]) -> list[list[str]]:
    """Groups of modules that import each other, at import time or later."""
    arrows = {}
    for name, (source, is_package) in modules.items():
        targets = {t if t in modules else t.rpartition(".")[0] for t in imports(name, source, is_package)}
        # A package's __init__ only re-exports: its modules may import from beside them.
        arrows[name] = {t for t in targets if t in modules and not modules[t][1] and not is_package}
    reach = {name: set(targets) for name, targets in arrows.items()}
    for middle in reach:
        for name in reach:
            if middle in reach[name]:
                reach[name] |= reach[middle]
    return sorted({tuple(sorted(o for o in reach if o in reach[n] and n in reach[o])) for n in reach if n in reach[n]})


@pytest.fixture(scope="module")
def modules():
    return {name: (file.read_text(), file.stem == "__init__") for name, file in sources().items()}


def test_every_room_has_its_row(modules):
    rooms = {name.split(".")[1] for name in modules if "." in name}
    assert rooms | {"_rerank"} == set(LEVEL)


def test_imports_go_one_way(modules):
    assert wrong_arrows(modules) == []


def test_no_circles(modules):
    assert circles(modules) == []


def test_kernels_know_nothing_of_dgfast(modules):
    for name, (source, is_package) in modules.items():
        if name.startswith("dgfast.kernels"):
            assert not {t for t in imports(name, source, is_package) if t.startswith("dgfast") and "kernels" not in t}


def test_the_checks_can_fail():
    made = {
        "dgfast.data.a": ("from dgfast.training import loop", False),
        "dgfast.data.b": ("from . import c", False),
        "dgfast.data.c": ("def f():\n    from .b import x", False),
    }
    assert wrong_arrows(made) == ["dgfast.data.a imports dgfast.training.loop"]
    assert circles(made) == [("dgfast.data.b", "dgfast.data.c")]
