"""transformers without scikit-learn and scipy: a third of what a program waits for before it has a model, for nothing that it does.

transformers 5.17 imports sklearn.metrics wherever it is installed, for a threshold of assisted generation and for the metrics of
GLUE, and scipy.optimize for losses of object detection. Here those modules alone are told that there is none; both libraries
stay as they are for who imports them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

DETECTION = ("for_object_detection", "deformable_detr", "rt_detr", "rf_detr", "grounding_dino", "lw_detr")
SPARED = {
    "transformers.generation.candidate_generator": "is_sklearn_available",
    "transformers.data.metrics": "is_sklearn_available",
} | {f"transformers.loss.loss_{name}": "is_scipy_available" for name in DETECTION}


class _Spared(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in SPARED else None
        if spec is not None:
            spec.loader.exec_module = partial(_executed, spec.loader.exec_module)
        return spec


def _executed(execute: Callable[[ModuleType], None], module: ModuleType) -> None:
    """Run the module's code while transformers says that the library is not installed."""
    utils, question = sys.modules.get("transformers.utils"), SPARED[module.__name__]
    answer = getattr(utils, question, None)
    if answer is None:  # another transformers asks otherwise
        return execute(module)
    setattr(utils, question, lambda: False)
    try:
        execute(module)
    finally:
        setattr(utils, question, answer)


def spare_transformers() -> None:
    """From now on; what is imported already stays."""
    if not any(isinstance(finder, _Spared) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Spared())
