# The compiled extension (csrc/bindings*.cpp); csrc/rerank.hpp says what its steps do.
from collections.abc import Callable
from typing import Any

def build_info() -> dict[str, Any]: ...
def on_threads(count: int, work: Callable[[int], object]) -> None: ...

cpu: Any
cuda: Any
