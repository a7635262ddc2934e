"""The table of docs/dependencies.md: what is installed with dgfast, in which version, under which licence.

python tools/list_dependencies.py            (prints the table; tests/test_dependencies.py compares it)
"""

import importlib.metadata
from pathlib import Path

LONGEST = 60  # characters of a licence's name; some packages put the whole text there
KNOWN = {  # packages whose metadata name no licence; what their files say
    "cuda-toolkit": "LicenseRef-NVIDIA-Proprietary",
    "numpy": "BSD-3-Clause",
    "tzdata": "Apache-2.0",
}


def constraints(file: Path) -> dict[str, str]:
    """Read the packages that are installed.

    Args:
        file: constraints.txt.
    Returns:
        name -> version.
    """
    lines = [line.split("#")[0].strip() for line in file.read_text().splitlines()]
    return dict(line.split("==") for line in lines if line)


def licence(package: str) -> str:
    """What an installed package's metadata say of its licence.

    Args:
        package: its name.
    """
    if package in KNOWN:
        return KNOWN[package]
    said = importlib.metadata.metadata(package)
    classes = [entry for entry in said.get_all("Classifier", []) if entry.startswith("License")]
    names = [said.get("License-Expression"), said.get("License"), *(entry.split(" :: ")[-1] for entry in classes)]
    return next((name for name in names if name and len(name) <= LONGEST and "\n" not in name), "see its files")


def rows(root: Path) -> list[str]:
    """Make the table's rows.

    Args:
        root: of the repository.
    Returns:
        a line of Markdown for each package in constraints.txt.
    """
    found = []
    for package, version in constraints(root / "constraints.txt").items():
        try:
            named = licence(package)
        except importlib.metadata.PackageNotFoundError:
            named = "not installed here"
        found.append(f"| {package} | {version} | {named} |")
    return found


if __name__ == "__main__":
    print("\n".join(["| package | version | licence |", "|---|---|---|", *rows(Path(__file__).parent.parent)]))
