"""What a run leaves. The folder is callable, as a function of this name would hide it or be hidden by it:

records = tunalab.records("results/figure6")         # collection.records
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return import_module("tunalab.collection").records(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
