"""Running a user's program as `__main__` of this process, as Python itself runs it."""

from __future__ import annotations

import importlib.machinery
import io
import linecache
import os
import pkgutil
import runpy
import sys
import types
from dataclasses import dataclass, field
from types import CodeType, TracebackType
from typing import Any, Literal, NoReturn


class UsageError(Exception):
    """A command line that makes no sense; the text says what is wrong with it."""


@dataclass
class Program:
    """What the command line says is to be run."""

    kind: Literal["script", "code", "module", "stdin", "none"]
    target: str = ""
    args: list[str] = field(default_factory=list)

    def prepare(self) -> CodeType | None:
        """Gives this process the `sys.argv`, `sys.path` and `__main__` of the program.

        Returns:
            Its code; None where Python's own machinery finds it, or where there is none.

        Raises:
            UsageError: it cannot be read.
            SyntaxError: it is no Python.
        """
        first = {"script": self.target, "code": "-c", "module": "-m", "stdin": self.target, "none": ""}
        sys.argv = [first[self.kind], *self.args]
        path = os.path.abspath(self.target)
        if self.kind == "script" and pkgutil.get_importer(path) is not None:
            _set_folder(path)
            _fresh_main()
            return None
        if self.kind == "script":
            data = _read(self.target)
            _set_folder(os.path.dirname(os.path.realpath(path)))
            _fresh_main(file=path)
            return pkgutil.read_code(io.BytesIO(data)) or _compile(data, path)
        _set_folder(os.getcwd() if self.kind == "module" else "")
        _fresh_main(file="<stdin>" if self.kind == "stdin" else None)
        if self.kind == "code":
            if sys.version_info >= (3, 13):
                # From this version on, Python's own tracebacks show the lines of -c.
                lines = self.target.splitlines(keepends=True)
                linecache.cache["<string>"] = (len(self.target), None, lines, "<string>")
            return _compile(self.target, "<string>")
        if self.kind == "stdin":
            return _compile(sys.stdin.buffer.read(), "<stdin>")
        return None

    def run(self, code: CodeType | None) -> None:
        """Runs the program; what it raises comes through, `SystemExit` included."""
        if code is not None:
            execute(code)
        elif self.kind != "none":
            _run_module(self.target if self.kind == "module" else None)


def _read(path: str) -> bytes:
    try:
        with io.open_code(os.path.abspath(path)) as file:
            return file.read()
    except OSError as error:
        raise UsageError(f"can't open the script {path!r}: {error.strerror or error}") from None


def _compile(source: str | bytes, filename: str) -> CodeType:
    return compile(source, filename, "exec", dont_inherit=True)


def _set_folder(folder: str) -> None:
    """Puts a folder in the place of the one that Python put first for pydist itself."""
    if not sys.flags.safe_path:
        sys.path[:1] = [folder]


_first_main = sys.modules.get("__main__")
"""Kept, as Python goes on using its namespace after an error without holding it."""


def _fresh_main(file: str | None = None) -> None:
    """Gives the program the `__main__` that Python would; that of pydist is in use for the command line."""
    main = types.ModuleType("__main__")
    namespace = main.__dict__
    namespace["__loader__"] = importlib.machinery.BuiltinImporter
    if sys.version_info < (3, 14):
        namespace["__annotations__"] = {}
    namespace["__builtins__"] = __import__("builtins")
    if file is not None:
        namespace.update(__file__=file, __cached__=None)
        if file != "<stdin>":
            machinery = importlib.machinery
            compiled = file.endswith(".pyc")
            loader = machinery.SourcelessFileLoader if compiled else machinery.SourceFileLoader
            namespace["__loader__"] = loader("__main__", file)
    sys.modules["__main__"] = main


def execute(code: CodeType) -> None:
    """Runs code in `__main__`; tracebacks are shown from below this frame on."""
    exec(code, sys.modules["__main__"].__dict__)


def _run_module(name: str | None) -> None:
    """Runs a module, or the `__main__` of the folder or archive that is first in `sys.path`.

    Python itself calls this function of `runpy` for `python -m`. The public ones put the old `__main__` back
    at the end, while threads and functions of `atexit` still need the new one.
    """
    run = runpy._run_module_as_main  # type: ignore[attr-defined]
    run(name or "__main__", name is not None)


def load_everywhere(text: str, filename: str) -> None:
    """Runs the text of a file in `__main__` of every process, also of workers that come later, and waits.

    `__file__` is its name there, and as long as it runs in this process.

    Raises:
        SyntaxError: it is no Python.
        BaseException: what it raised in this process.
        SystemExit: it raised in others, which has been printed.
    """
    from . import _calls, _everywhere, _groups
    from ._cluster import procs

    _compile(text, filename)
    key = _everywhere._new_key()
    step = _everywhere._run_text, (key, True, text, filename, {"__file__": filename})
    _everywhere._keep(key, step, None)
    workers = [pid for pid in procs() if pid != 1]
    calls = _groups.call_each(workers, _calls.same_call(*step))
    _load_here(*step)
    _, errors = _groups.values_of(calls)
    if errors:
        print_error(_groups.group_of(f"-L {filename}", errors).with_traceback(None))
        raise SystemExit(1)


def _load_here(run: Any, arguments: tuple[Any, ...]) -> None:
    namespace = sys.modules["__main__"].__dict__
    before = {name: namespace[name] for name in ("__file__",) if name in namespace}
    try:
        run(*arguments)
    finally:
        namespace.pop("__file__", None)
        namespace.update(before)


_ENTRIES = (execute.__code__, _run_module.__code__, _load_here.__code__)
_PACKAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "")


def users_part(trace: TracebackType | None, error: BaseException) -> TracebackType | None:
    """Returns the part of a traceback that the program would have without pydist."""
    part = trace
    while part is not None:
        entered = part.tb_frame.f_code in _ENTRIES
        part = part.tb_next
        if entered:
            while part is not None and part.tb_frame.f_code.co_filename.startswith(_PACKAGE):
                part = part.tb_next
            return part
    # It was not running yet. What else goes wrong in pydist itself is shown whole.
    return None if isinstance(error, SyntaxError | KeyboardInterrupt) else trace


def hide_own_frames() -> None:
    """Lets the exception that is about to end this process be printed without the frames of pydist."""
    hook = sys.excepthook

    def show(cls: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        part = users_part(trace, error)
        error.__traceback__ = sys.last_traceback = part
        hook(cls, error, part)

    sys.excepthook = show


interrupted = False
"""Whether an interrupt that nothing has caught ends this process."""


def keep_interrupt() -> None:
    """Lets a process that an interrupt has ended end by SIGINT; to be the last that runs at its end.

    CPython keeps for that whether the last text that was run as code ended by KeyboardInterrupt. What runs
    in between, such as the text by which a dataclass or named tuple is made, lets it forget.
    """
    if interrupted:
        try:
            exec("raise KeyboardInterrupt")
        except KeyboardInterrupt:
            pass


def print_error(error: BaseException) -> None:
    """Prints an error of the program as if it ended this process, which goes on."""
    part = users_part(error.__traceback__, error)
    sys.last_type, sys.last_value = type(error), error
    sys.last_traceback = error.__traceback__ = part
    if sys.version_info >= (3, 12):
        sys.last_exc = error
    sys.excepthook(type(error), error, part)


def fail(message: str, status: int) -> NoReturn:
    """Ends this process with a message on stderr."""
    sys.stderr.write(f"pydist: error: {message}\n")
    raise SystemExit(status)
