"""The compiled extension (csrc/bindings.cpp); its arguments are checked at run time."""

from typing import Any

def __getattr__(name: str) -> Any: ...
