"""What the documentation, the docstrings and the comments refer to is there: files, names, flags, sections.

Nothing is imported for it: sources are read by `ast`, so that all of it takes a few seconds.
"""

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
LONGEST = 120  # characters of a line
LONGEST_ROW = 160  # of a row of a Markdown table, which cannot be wrapped

SUFFIXES = "py|md|cu|cpp|hpp|cuh|inl|json|npz|toml|txt|sh"
CODE_SUFFIXES = (".py", ".cu", ".cpp", ".hpp", ".cuh", ".inl", ".h")
# Endings that make `metrics.jsonl` a file and not the name `jsonl` of the module `metrics`.
FILE_ENDINGS = {
    *SUFFIXES.split("|"),
    *"jsonl npy pt pth png jpg safetensors so tmp gz xz yml tar bin avi h html css".split(),
}

# Files that programs write or users have, beside those that the docstring of dgfast/run_directory.py lists.
WRITTEN = {
    "best.npz": "what an example of `dgfast rerank` writes",
    "eval-DATASET.json": "what `dgfast eval` writes",
    "eval-DATASET.txt": "the same",
    "rankings-DATASET.png": "the same",
    "transfer.json": "the same, of several data sets",
    "transfer.txt": "the same",
    "quality-DATASET.json": "what `dgfast quality` writes of photographs",
    "generated.json": "what `dgfast generate` writes",
    "ROW-SEED.json": "what `dgfast ablation` writes for each run",
    "ablation.json": "what `dgfast ablation` writes",
    "ablation.png": "the same",
    "NAME.json": "a name to be chosen, in dgfast/run_directory.py",
    "vectors.json": "what an example of `dgfast embed` writes",
    "list.txt": "what an example of `dgfast embed` reads",
    "tracks.txt": "the same",
    "search.json": "what `dgfast search` writes",
    "manifest.json": "what `dgfast synth` writes",
    "profile.json": "what an example of `dgfast profile` writes",
    "sweep.json": "what an example of `dgfast profile` writes",
    "rerank-market1501-GPU.json": "what an example of bench/bench_rerank.py writes",
    "step-GPU.json": "what an example of `dgfast profile` writes",
    "list_train.txt": "of MSMT17",
    "list_val.txt": "of MSMT17",
    "list_query.txt": "of MSMT17",
    "list_gallery.txt": "of MSMT17",
    "part-NN.json": "what bench/campaign writes",
    "CARD": "a name to be chosen, in docs/benchmarks.md",
    "sharded.py": "an example in docs/reranking.md",
    "bench_NAME.py": "a name to be chosen, in docs/architecture.md",
    "NAME.py": "the same",
    "NAME_cases.py": "the same",
    "run.py": "of torch: how torchrun appears in its own command line",
}
# Flags of other programs, in examples.
OTHER_PROGRAMS = {
    "torchrun": "--nproc_per_node --nnodes --node_rank --standalone --max-restarts --rdzv-backend --rdzv-endpoint"
    " --rdzv-id --module",
    "pytest": "--maxprocesses --dist --help --lf --durations",
    "pip": "--upgrade --no-deps",
    "pip-audit": "--disable-pip",
    "cmake": "--preset --build --workflow",
    "compute-sanitizer": "--tool --leak-check",
    "git and pre-commit": "--all-files",
    "ruff and clang-format": "--check --fix --dry-run",
    "tensorboard and mlflow": "--logdir --backend-store-uri",
    "trtexec": "--onnx --minShapes --optShapes --maxShapes --saveEngine --fp16",
}


class Text(NamedTuple):
    """A piece of prose: a Markdown file, a docstring or a comment."""

    file: str
    line: int
    words: str


class Problem(NamedTuple):
    """What is wrong, and where."""

    file: str
    line: int
    found: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.found}"


# --- The repository and its prose


def repository_files() -> list[str]:
    """All files under version control, and new ones that are not ignored."""
    found = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if found.returncode:
        pytest.skip("no git checkout: what belongs to the repository is not known", allow_module_level=True)
    return sorted(name for name in set(found.stdout.split("\n")) if name and (ROOT / name).is_file())


def prose_of_python(source: str, file: str) -> Iterator[Text]:
    """Docstrings, strings below fields, comments, and other strings that send people to docs/."""
    nodes = list(ast.walk(ast.parse(source)))
    texts = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            sends = not file.startswith("tests/") and re.search(r"\bdocs/\w", node.value)  # tests hold made-up texts
            if id(node) in texts or sends:
                yield Text(file, node.lineno, node.value)
    block: list[tokenize.TokenInfo] = []  # comments in a row are one text, so that a sentence may be wrapped
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if block and token.start[0] != block[-1].start[0] + 1:
                yield _comment(block, file)
                block = []
            block.append(token)
    if block:
        yield _comment(block, file)


def _comment(block: list[tokenize.TokenInfo], file: str) -> Text:
    return Text(file, block[0].start[0], "\n".join(token.string.lstrip("# ") for token in block))


def prose_of_cpp(source: str, file: str) -> Iterator[Text]:
    """Comments; lines of // in a row are one text."""
    for match in re.finditer(r"/\*.*?\*/|(?://[^\n]*\n?[ \t]*)+", source, re.DOTALL):
        words = re.sub(r"^[ \t]*//+ ?", "", match[0], flags=re.MULTILINE)
        yield Text(file, source.count("\n", 0, match.start()) + 1, words)


_HASH = re.compile(r"(?:^|\s)#+ (.*)")  # a comment of TOML, CMake and the shell


def prose_of(file: str, source: str) -> list[Text]:
    """The prose of a file, by its kind."""
    if file == "CHANGELOG.md":  # the first column of its tables names what was
        source = re.sub(r"^\|[^|\n]*\|", "|", source, flags=re.MULTILINE)
    if file.endswith(".md"):
        return [Text(file, 1, source)]
    if file.endswith(".py"):
        return list(prose_of_python(source, file))
    if file.endswith(CODE_SUFFIXES):
        return list(prose_of_cpp(source, file))
    return [Text(file, n, match[1]) for n, line in enumerate(source.split("\n"), 1) if (match := _HASH.search(line))]


def place(text: Text, position: int) -> int:
    """The line of a character of a text."""
    return text.line + text.words.count("\n", 0, position)


def in_backticks(text: Text) -> Iterator[tuple[int, str]]:
    """Line and content of every span in backticks, blocks of code left out."""
    words = text.words
    if text.file.endswith(".md"):
        words = re.sub(r"^```.*?^```$", lambda block: re.sub(r"[^\n]", " ", block[0]), words, flags=re.S | re.M)
    for match in re.finditer(r"(?<!`)`([^`]+)`(?!`)", words):
        yield place(text, match.start()), re.sub(r"\s+", " ", match[1])


# --- Paths

# A word in the middle of a text that is a file's name: letters, then one of the suffixes.
_PATH = re.compile(rf"(?<![\w./*-])(?:[\w.*-]+/)*[\w*-][\w.*-]*\.(?:{SUFFIXES})(?![\w/-])")
# A word that begins with a folder of the repository, whatever its end.
_IN_FOLDER = re.compile(r"(?<![\w./-])(?:docs|tests|bench|csrc|kernels|tools|dgfast|\.ci)/[\w./*-]*[\w/*]")
_LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)")


class Repository:
    """Which files there are.

    Args:
        files: paths relative to the root.
        written: names of files that programs write.
    """

    def __init__(self, files: Iterable[str], written: Iterable[str] = ()):
        self.files = set(files)
        self.folders = {str(parent) for name in self.files for parent in PurePosixPath(name).parents}
        self.written = set(written)

    def holds(self, word: str, file: str) -> bool:
        """Whether a word names a file or folder here, as seen from a file: from the root, from dgfast/, from the file's
        own folder, or as a name that no two files share."""
        word = word.rstrip("/").removeprefix("./")
        if PurePosixPath(word).name in self.written:
            return True
        own = PurePosixPath(file).parent
        for start in ("", "dgfast", str(own)):
            path = normpath(PurePosixPath(start) / word)
            if path in self.files or path in self.folders or ("*" in path and self._any(path)):
                return True
        # The name of a file alone, or with the end of its folder: loaders/choose.py.
        same = [name for name in self.files if f"/{name}".endswith(f"/{word}")]
        return len(same) == 1 or ("*" in word and "/" not in word and self._any(f"*/{word}"))

    def _any(self, pattern: str) -> bool:
        return any(fnmatch(name, pattern) for name in self.files)


def broken_paths(texts: Iterable[Text], repository: Repository) -> list[Problem]:
    """Words that look like a path of the repository and name nothing there."""
    problems = []
    for text in texts:
        matches = [(m.start(), m[0]) for pattern in (_PATH, _IN_FOLDER) for m in pattern.finditer(text.words)]
        if text.file.endswith(".md"):
            matches += [(m.start(), m[1]) for m in _LINK.finditer(text.words) if "://" not in m[1]]
        for start, word in sorted(set(matches)):
            if not repository.holds(word, text.file):
                problems.append(Problem(text.file, place(text, start), word))
    return problems


def written_by_a_run(docstring: str) -> set[str]:
    """The files that the docstring of dgfast/run_directory.py lists."""
    return set(re.findall(r"[\w-]+\.(?:json|jsonl|txt|png|safetensors)\b", docstring))


# --- Names


class Module(NamedTuple):
    """What a module defines: name -> its definition; for an imported name, where it is from."""

    name: str
    names: dict[str, ast.ClassDef | tuple[str, str] | None]


class Code:
    """Every module of dgfast and kernels, read without importing.

    Args:
        sources: file, relative to the root -> source.
        opaque: modules that are built from other languages -> a text that holds their names in quotes.
    """

    def __init__(self, sources: dict[str, str], opaque: dict[str, str] | None = None):
        self.opaque = opaque or {}
        self.modules = {dotted(file): _module(dotted(file), file, source) for file, source in sources.items()}
        self.classes: dict[str, list[tuple[str, ast.ClassDef]]] = {}
        for module in self.modules.values():
            for name, what in module.names.items():
                if isinstance(what, ast.ClassDef):
                    self.classes.setdefault(name, []).append((module.name, what))

    def knows(self, word: str) -> bool | None:
        """Whether a dotted name exists; None where it does not begin with a module or class of ours."""
        parts = word.split(".")
        beginnings = [(m, parts[n:]) for n in range(len(parts), 0, -1) for m in self._modules_named(parts[:n])]
        answers = [self._in_module(module, rest) for module, rest in beginnings]
        answers += [self._in_class(module, node, parts[1:]) for module, node in self.classes.get(parts[0], [])]
        for name, text in self.opaque.items():
            own = name.rpartition(".")[2]
            if own in parts[:-1]:
                answers.append(all(f'"{part}"' in text for part in parts[parts.index(own) + 1 :]))
        return any(answers) if answers else None

    def _modules_named(self, parts: list[str]) -> list[str]:
        tail = "." + ".".join(parts)
        return [name for name in self.modules if f".{name}".endswith(tail)]

    def _in_module(self, module: str, rest: list[str]) -> bool:
        if not rest:
            return True
        if f"{module}.{rest[0]}" in self.modules and self._in_module(f"{module}.{rest[0]}", rest[1:]):
            return True
        if f"{module}.{rest[0]}" in self.opaque:
            return all(f'"{part}"' in self.opaque[f"{module}.{rest[0]}"] for part in rest[1:])
        names = self.modules[module].names
        if rest[0] not in names:
            return False
        what = names[rest[0]]
        if isinstance(what, tuple):
            origin, name = what
            if f"{origin}.{name}" in self.modules:
                return self._in_module(f"{origin}.{name}", rest[1:])
            return origin not in self.modules or self._in_module(origin, [name, *rest[1:]])
        return self._in_class(module, what, rest[1:]) if isinstance(what, ast.ClassDef) else True

    def _in_class(self, module: str, node: ast.ClassDef, rest: list[str]) -> bool:
        if not rest or rest[0] in _members(node):
            return True
        for base in node.bases:
            name = ast.unparse(base).partition("[")[0]
            if name in ("Protocol", "NamedTuple", "Generic"):
                continue
            if name not in self.modules[module].names and name not in self.classes:
                return True  # of torch or the like: not known here
            if any(self._in_class(where, known, rest) for where, known in self.classes.get(name, [])):
                return True
            if name not in self.classes:
                return True
        return False


def dotted(file: str) -> str:
    """The module that a file is: kernels/border.py -> dgfast.kernels.border."""
    path = PurePosixPath("dgfast", file) if file.startswith("kernels/") else PurePosixPath(file)
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def _module(name: str, file: str, source: str) -> Module:
    tree = ast.parse(source)
    package = name if file.endswith("__init__.py") else name.rpartition(".")[0]
    names: dict[str, ast.ClassDef | tuple[str, str] | None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):  # wherever it stands: some are made only when they are needed
            origin = node.module or ""
            if node.level:
                base = package.split(".")[: len(package.split(".")) - node.level + 1]
                origin = ".".join([*base, *([node.module] if node.module else [])])
            names.update({alias.asname or alias.name: (origin, alias.name) for alias in node.names})
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            names[node.name] = node
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            names[node.name] = None
            if node.name == "__getattr__":  # gives what __all__ promises
                lists = [n.value for n in tree.body if isinstance(n, ast.Assign) and _targets(n) == {"__all__"}]
                names.update(dict.fromkeys(ast.literal_eval(lists[0]) if lists else ()))
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            names.update(dict.fromkeys(_targets(node)))
        elif isinstance(node, ast.Import):
            names.update(dict.fromkeys(alias.asname or alias.name.partition(".")[0] for alias in node.names))
    return Module(name, names)


def _targets(node: ast.Assign | ast.AnnAssign) -> set[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}


def _members(node: ast.ClassDef) -> set[str]:
    """Methods, fields, and what methods give to self."""
    found: set[str] = set()
    for inner in ast.walk(node):
        if isinstance(inner, (ast.FunctionDef, ast.ClassDef)):
            found.add(inner.name)
        elif isinstance(inner, (ast.Assign, ast.AnnAssign)):
            targets = inner.targets if isinstance(inner, ast.Assign) else [inner.target]
            parts = [part for target in targets for part in ast.walk(target)]
            found |= {p.attr for p in parts if isinstance(p, ast.Attribute) and ast.unparse(p.value) == "self"}
    for inner in node.body:
        if isinstance(inner, (ast.Assign, ast.AnnAssign)):
            found |= _targets(inner)
    return found


_NAME = re.compile(r"\.?([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)(?:\(.*\))?")


def broken_names(texts: Iterable[Text], code: Code) -> list[Problem]:
    """Dotted names in backticks that begin with a module or class of ours and lead nowhere."""
    problems = []
    for text in texts:
        for line, span in in_backticks(text):
            match = _NAME.fullmatch(span)
            if match and match[1].rpartition(".")[2] not in FILE_ENDINGS and code.knows(match[1]) is False:
                problems.append(Problem(text.file, line, match[1]))
    return problems


def broken_rows(table: Text, sources: dict[str, str]) -> list[Problem]:
    """Rows of step, file, function whose function does not occur in the file."""
    problems = []
    for number, line in enumerate(table.words.split("\n"), start=1):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        named = re.findall(r"`([^`]+)`", " ".join(cells[1:]))
        file_of = {w: f for w in named for f in (w, f"dgfast/{w}") if f in sources}
        if len(cells) == 3 and file_of:
            text = "\n".join(sources[file] for file in file_of.values())
            words = [word for word in named if word not in file_of and re.fullmatch(r"[\w.]+", word)]
            names = [part for word in words for part in word.split(".")]
            problems += [Problem(table.file, number, n) for n in names if not re.search(rf"\b{n}\b", text)]
    return problems


# --- Flags

_FLAG = re.compile(r"(?<![\w-])--[A-Za-z][\w-]*")


def flags_of(sources: dict[str, str]) -> set[str]:
    """Flags that the sources define: fields of settings, arguments of argparse, pytest and functions under tyro."""
    found = set()
    for tree in map(ast.parse, sources.values()):
        functions = {f.name: [a.arg for a in f.args.args] for f in tree.body if isinstance(f, ast.FunctionDef)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and re.fullmatch(r"Command|Measurement|\w*Config", node.name):
                fields = [line for line in node.body if isinstance(line, ast.AnnAssign)]
                for name, kind in ((ast.unparse(field.target), ast.unparse(field.annotation)) for field in fields):
                    renamed = re.search(r"name='([\w-]+)'", kind)
                    name = renamed[1] if renamed else name.replace("_", "-")
                    if not kind.endswith("Config"):  # a group of flags
                        found |= {f"--{name}"} | ({f"--no-{name}"} if kind == "bool" else set())
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                if ast.unparse(node.func) == "tyro.cli" and node.args and isinstance(node.args[0], ast.Name):
                    arguments = functions.get(node.args[0].id, [])
                    found |= {"--" + name.replace("_", "-") for name in arguments}
                elif node.func.attr in ("add_argument", "addoption"):
                    found |= {ast.literal_eval(argument) for argument in node.args}
    return found


def unknown_flags(texts: Iterable[Text], flags: set[str]) -> list[Problem]:
    """Flags that no command has."""
    return [
        Problem(text.file, place(text, match.start()), match[0])
        for text in texts
        for match in _FLAG.finditer(text.words)
        if match[0] not in flags
    ]


# --- Lines and sections


def long_lines(file: str, source: str) -> list[Problem]:
    """Lines of more than 120 characters; rows of Markdown tables may have 160, and an address may stand alone."""
    problems = []
    for number, line in enumerate(source.split("\n"), start=1):
        most = LONGEST_ROW if file.endswith(".md") and line.startswith("|") else LONGEST
        if file == "README.md" and line.startswith("python3 -m venv"):
            continue  # one of the two commands that .ci/run takes from there, a line each
        if len(line) > most and not re.fullmatch(r"\W*(Source:|see)?\s*\S*https?://\S+", line):
            problems.append(Problem(file, number, f"{len(line)} characters"))
    return problems


_SECTION = re.compile(r"((?:docs/)?method(?:\.md)?)`?\s*,?\s+section\s+(\d+)")


def broken_sections(texts: Iterable[Text], method: str) -> list[Problem]:
    """References to sections of docs/method.md that are not there, or that do not name the file."""
    sections = set(re.findall(r"^## (\d+)\.", method, re.MULTILINE))
    return [
        Problem(text.file, place(text, match.start()), re.sub(r"\s+", " ", match[0]))
        for text in texts
        for match in _SECTION.finditer(text.words)
        if match[1] not in ("docs/method.md", "method.md") or match[2] not in sections
    ]


# --- The repository as it is

FILES = repository_files()
SOURCES = {
    name: (ROOT / name).read_text()
    for name in FILES
    if name.endswith((".md", ".toml", ".txt", ".sh", *CODE_SUFFIXES)) or name == ".ci/run"
}
PROSE = [text for file, source in SOURCES.items() for text in prose_of(file, source)]
PYTHON = {file: source for file, source in SOURCES.items() if file.endswith(".py")}


def report(check: str, problems: list[Problem]) -> None:
    """Fail with all problems but those that are to be mended by others."""
    if problems:
        pytest.fail(f"{check}:\n" + "\n".join(map(str, problems)), pytrace=False)


def test_paths_lead_to_files():
    run_directory = ast.get_docstring(ast.parse(SOURCES["dgfast/run_directory.py"]))
    repository = Repository(FILES, WRITTEN.keys() | written_by_a_run(run_directory))
    report("paths", broken_paths(PROSE, repository))


def test_names_exist():
    packages = {file: source for file, source in PYTHON.items() if file.startswith(("dgfast/", "kernels/"))}
    bindings = "\n".join(source for file, source in SOURCES.items() if file.startswith("csrc/bindings"))
    code = Code(packages, opaque={"dgfast._rerank": bindings})
    assert code.knows("dgfast.retrieval.rerank") and code.knows("step.translate")
    report("names", broken_names(PROSE, code))


def test_the_map_names_what_the_files_hold():
    (table,) = (text for text in PROSE if text.file == "docs/architecture.md")
    report("rows", broken_rows(table, SOURCES))


def test_flags_exist():
    flags = flags_of({file: source for file, source in PYTHON.items() if not file.startswith("tests/")})
    assert {"--batch-size", "--no-start-from-teacher", "--lambda", "--benchmark", "--size"} <= flags
    others = {"--help", "--version"} | {flag for words in OTHER_PROGRAMS.values() for flag in words.split()}
    report("flags", unknown_flags(PROSE, flags | others))


def test_lines_are_short():
    # The bundled model's card and table are a run's own output, whose tables are wider.
    by_hand = {file: source for file, source in SOURCES.items() if not file.startswith("dgfast/bundled/")}
    report("lines", [p for file, source in by_hand.items() for p in long_lines(file, source)])


def test_equations_lead_to_their_lines():
    source = SOURCES["dgfast/training/step.py"].splitlines()
    links = re.findall(r"\[(\d+)\]\(\.\./dgfast/training/step\.py#L(\d+)\)", SOURCES["docs/method.md"])
    assert {int(equation) for equation, _ in links} == set(range(1, 11))
    for equation, number in links:
        line = source[int(number) - 1]
        assert re.search(rf"equations? .*\b{equation}\b", line), f"equation {equation} is not in line {number}: {line}"


def test_sections_of_the_method_exist():
    report("sections", broken_sections(PROSE, SOURCES["docs/method.md"]))


# --- Each check can fail


def md(words: str) -> list[Text]:
    return [Text("docs/made_up.md", 1, words)]


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        ("see `docs/there.md` and there.md, training/step.py, `step.py` and [a link](there.md#part)", []),
        ("`config.json` is written by a run; `.json` and metrics.jsonl are no files of ours", []),
        ("bench_*.py, docs/ and `docs/*.md`", []),
        ("see `docs/gone.md`", ["docs/gone.md"]),
        ("see docs/there, which lacks its suffix", ["docs/there"]),
        ("a [link](gone.md)", ["gone.md"]),
        ("`twice.py` is the name of two files", ["twice.py"]),
        ("in\ngone/step.py.", ["gone/step.py"]),
        ("gone_*.py", ["gone_*.py"]),
    ],
)
def test_paths_that_lead_nowhere_are_found(words, wrong):
    files = ["docs/there.md", "dgfast/training/step.py", "dgfast/a/twice.py", "dgfast/b/twice.py", "bench/bench_x.py"]
    written = written_by_a_run("    config.json   every setting")
    found = broken_paths(md(words), Repository(files, written))
    assert sorted({problem.found for problem in found}) == wrong


MADE_UP = {
    "dgfast/__init__.py": "",
    "dgfast/data/__init__.py": "from .pairs import Sampler\n",
    "dgfast/data/pairs.py": "class Base:\n    size: int\n\n\n"
    "class Sampler(Base):\n    def batch_at(self): self.rank = 0\n",
    "dgfast/lazy/__init__.py": "__all__ = ['late']\ndef __getattr__(name): ...\n",
    "dgfast/step.py": "import torch\n\n\nLIMIT = 1\n\n\ndef translate(): ...\n\n\nclass Net(torch.nn.Module): ...\n",
    "kernels/__init__.py": "from .border import reflect\n",
    "kernels/border.py": "def reflect(): ...\n",
}


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        ("`data.Sampler.batch_at`, `Sampler.rank`, `Sampler.size`, `pairs.Sampler`, `step.translate(x, y)`", []),
        ("`kernels.reflect`, `dgfast.kernels.border.reflect`, `lazy.late`, `step.LIMIT`, `Net.eval()`", []),
        ("`torch.mm`, `np.gone`, `metrics.jsonl`, step.gone without backticks, `_rerank.cpu`", []),
        ("`step.gone`", ["step.gone"]),
        ("`data.Sampler.gone`, `Sampler.gone`", ["Sampler.gone", "data.Sampler.gone"]),
        ("`kernels.gone`, `dgfast.gone`, `lazy.gone`", ["dgfast.gone", "kernels.gone", "lazy.gone"]),
        ("`_rerank.gone`", ["_rerank.gone"]),
        ("`step.\n    gone`", []),
    ],
)
def test_names_that_do_not_exist_are_found(words, wrong):
    code = Code(MADE_UP, opaque={"dgfast._rerank": 'm.def_submodule("cpu")'})
    assert sorted(problem.found for problem in broken_names(md(words), code)) == wrong


def test_rows_whose_file_lacks_the_function_are_found():
    words = "| step | file | function |\n|---|---|---|\n"
    words += "| one | `step.py` | `translate` |\n| two | `step.py` | `gone`, `Net.gone_too` |\n| three | torch | |\n"
    found = broken_rows(*md(words), {"dgfast/step.py": MADE_UP["dgfast/step.py"]})
    assert [(problem.line, problem.found) for problem in found] == [(4, "gone"), (4, "gone_too")]


def test_flags_that_no_command_has_are_found():
    source = (
        "class Command:\n    config: MadeUpConfig\n    batch_size: int = 1\n    mirror: bool = True\n"
        "    lambda_: Annotated[float, arg(name='lambda')] = 0.3\n"
        "class NoFlags:\n    hidden: int\n"
        "parser.add_argument('--size')\n"
        "def main(out_folder): ...\ntyro.cli(main)\n"
    )
    words = "--batch-size 2, --out-folder DIR, `--no-mirror`, --lambda, --size; a--b; "
    words += "--hidden, `--no-batch-size`, --batch_size, --config"
    found = unknown_flags(md(words), flags_of({"made_up.py": source}))
    assert [problem.found for problem in found] == ["--hidden", "--no-batch-size", "--batch_size", "--config"]


@pytest.mark.parametrize(
    ("file", "line", "fine"),
    [
        ("a.md", "x" * 120, True),
        ("a.md", "x" * 121, False),
        ("a.py", "| " + "x" * 120, False),
        ("a.md", "| " + "x" * 158, True),
        ("a.md", "| " + "x" * 159, False),
        ("a.md", "see https://" + "x" * 150, True),
        ("a.md", "prose before https://" + "x" * 150, False),
    ],
)
def test_long_lines_are_found(file, line, fine):
    assert [problem.line for problem in long_lines(file, f"first\n{line}\n")] == ([] if fine else [2])


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        ("docs/method.md, section 2", []),
        ("`docs/method.md`, section\n2; paper, section 3.1", []),
        ("docs/method.md, section 3", ["docs/method.md, section 3"]),
        ("docs/method, section 2", ["docs/method, section 2"]),
        ("(method, section 2)", ["method, section 2"]),
    ],
)
def test_sections_that_do_not_exist_are_found(words, wrong):
    found = broken_sections(md(words), "# Method\n## 1. Networks\n## 2. One iteration\n")
    assert [problem.found for problem in found] == wrong


def test_prose_is_read_from_docstrings_fields_and_comments():
    source = '"""Module."""\n# one\n# two\nx = "no prose"\nclass C:\n    """Class."""\n    y: int\n    """Field."""\n'
    texts = {(text.line, text.words) for text in prose_of("a.py", source)}
    assert texts == {(1, "Module."), (2, "one\ntwo"), (6, "Class."), (8, "Field.")}
    texts = prose_of("a.hpp", "int x;  // one\n        // two\nint y; /* three */\n")
    assert [(text.line, text.words.split()) for text in texts] == [(1, ["one", "two"]), (3, ["/*", "three", "*/"])]
    texts = prose_of("dgfast/a.py", 'print(f"see docs/gone.md {x}", "no prose")  # three\n')
    assert [text.words for text in texts] == ["see docs/gone.md ", "three"]
    assert [text.words for text in prose_of("a.toml", "a = 1  # one\nb = '#2'\n# two\n")] == ["one", "two"]
    problems = broken_paths(prose_of("a.py", 'x = 1\n\n"""First line.\n\nSee `gone.md`.\n"""\n'), Repository([]))
    assert problems == [Problem("a.py", 5, "gone.md")]
