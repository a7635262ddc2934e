"""Public docstrings: every argument has a line of its own, every field of a public record is explained.

What counts as public: names without a leading underscore in modules without one, in dgfast/ and kernels/. A method may
leave its arguments to a documented one of the same name further up in the file, which it overrides or implements.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("dgfast/**/*.py"), *ROOT.glob("kernels/**/*.py")])
RECORDS = {"NamedTuple", "Protocol"}  # bases whose fields are documented like a dataclass's

Function = ast.FunctionDef | ast.AsyncFunctionDef


def is_public(name: str) -> bool:
    return not name.startswith("_")


def decorators(node: Function | ast.ClassDef) -> set[str]:
    return {ast.unparse(d).split("(")[0].split(".")[-1] for d in node.decorator_list}


def public_definitions(tree: ast.Module) -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """(dotted name, node) of public classes, functions and methods."""
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef) and is_public(node.name):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                for inner in node.body:
                    if isinstance(inner, Function) and is_public(inner.name):
                        yield f"{node.name}.{inner.name}", inner


def parameters(node: Function, method: bool) -> list[str]:
    args = node.args
    names = [a.arg for a in (*args.posonlyargs, *args.args, *args.kwonlyargs)]
    if method and "staticmethod" not in decorators(node):
        names = names[1:]
    names += [a.arg for a in (args.vararg, args.kwarg) if a is not None]
    return [name for name in names if is_public(name)]


def documented(docstring: str) -> set[str]:
    """Names that begin a line of the docstring, indented as the lines below "Args:" are: `    name: ...`."""
    return set(re.findall(r"^[ ]{4,}\*{0,2}(\w+)(?:[ ]*\([^)]*\))?:[ ]+\S", docstring, re.MULTILINE))


def fields(node: ast.ClassDef) -> list[tuple[str, bool]]:
    """Public fields of a class, and whether a string follows in the next statement or a comment stands beside it."""
    found = []
    for statement, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            found.append((statement.target.id, told))
    return [(name, told) for name, told in found if is_public(name)]


def complaints(source: str, file: str = "") -> list[str]:
    """What is missing in the public docstrings of a module."""
    tree = ast.parse(source)
    lines = source.splitlines()
    found = [] if ast.get_docstring(tree) else [f"{file}: the module has no docstring"]
    told_by: dict[str, set[str]] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not is_public(node.name):  # a base class that only this file knows
            for inner in node.body:
                if isinstance(inner, Function):
                    told_by.setdefault(inner.name, set()).update(
                        documented(ast.get_docstring(inner, clean=False) or "")
                    )
    for name, node in public_definitions(tree):
        where = f"{file}:{node.lineno} {name}"
        text = ast.get_docstring(node, clean=False) or ""
        short = name.rpartition(".")[2]
        if not text and not {"overload"} & decorators(node):
            found.append(f"{where}: no docstring")
            continue
        if isinstance(node, ast.ClassDef):
            bases = {ast.unparse(b).split(".")[-1].split("[")[0] for b in node.bases}
            if "dataclass" in decorators(node) or bases & RECORDS:
                beside = {n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and "#" in lines[n.lineno - 1]}
                missing = [f for f, told in fields(node) if not told and f not in documented(text) | beside]
                missing and found.append(f"{where}: fields without a line: {', '.join(missing)}")
            made = next((n for n in node.body if isinstance(n, Function) and n.name == "__init__"), None)
            if made:
                text += ast.get_docstring(made, clean=False) or ""
                missing = [p for p in parameters(made, True) if p not in documented(text)]
                missing and found.append(f"{where}: arguments without a line: {', '.join(missing)}")
            continue
        if {"property", "cached_property", "jit", "overload"} & decorators(node):
            continue
        told = documented(text) | told_by.get(short, set())
        missing = [p for p in parameters(node, "." in name) if p not in told]
        missing and found.append(f"{where}: arguments without a line: {', '.join(missing)}")
        if "." in name:
            told_by.setdefault(short, set()).update(told)
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_public_docstrings(file):
    if file.stem.startswith("_") and file.stem != "__init__":
        return
    assert complaints(file.read_text(), file.name) == []


def test_the_check_can_fail():
    good = '"""M."""\n\n\ndef f(a, *, b):\n    """F.\n\n    Args:\n        a: one.\n        b: two.\n    """\n'
    assert complaints(good) == []
    assert complaints(good.replace("        b: two.\n", ""))[0].endswith("arguments without a line: b")
    assert complaints(good.replace("a: one.\n        b: two.", "a: one. b: two."))[0].endswith("line: b")
    record = '"""M."""\n\n\n@dataclass\nclass R:\n    """R."""\n\n    x: int\n    """An x."""\n    y: int\n'
    assert complaints(record)[0].endswith("fields without a line: y")
    assert complaints("def f(): ...")[:2] == [": the module has no docstring", ":1 f: no docstring"]
