"""Imports that happen in the middle of calls, where an interrupt must not strike them."""

from __future__ import annotations

import queue
import sys
import threading
from importlib import import_module
from types import ModuleType

from . import _interrupts


def load(name: str) -> ModuleType:
    """Imports a module of pydist, on a thread of its own where it is not there yet.

    An interrupt ends the wait, not the import: one that is broken off can leave its lock taken for ever.
    Where no thread can be had, as under Python 3.12 once the main one has ended, this one does it.

    Parameters:
        name: of the module, without the package.
    """
    full = f"{__package__}.{name}"
    found = sys.modules.get(full)
    if found is not None and not getattr(found.__spec__, "_initializing", False):
        return found
    done: queue.SimpleQueue[ModuleType | BaseException] = queue.SimpleQueue()

    def run() -> None:
        try:
            done.put(import_module(full))
        except BaseException as error:
            done.put(error)

    try:
        _interrupts.start_thread(threading.Thread(target=run, name="pydist-import", daemon=True))
    except RuntimeError:
        run()
    result = done.get()
    if isinstance(result, BaseException):
        raise result
    return result
