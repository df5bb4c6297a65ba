"""What `doctor` asks of a machine, by the standard library alone and in the language of Python 3.6.

Its text is run on machines that need not have pydist, nor a Python that is new enough for it.
"""

import json
import os
import platform
import socket
import sys
import tempfile
from typing import Any, Dict, List, Optional  # noqa: UP035

MARK = "pydist-doctor:"

BLAS_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


def facts() -> Dict[str, Any]:  # noqa: UP006
    """Tells of this machine and its Python, as data that JSON can carry."""
    found = {
        "host": platform.node(),
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "executable": sys.executable,
        "addresses": _addresses(),
        "usable_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpus": os.cpu_count(),
        "quota": _quota(),
        "threads": {name: os.environ[name] for name in BLAS_VARIABLES if name in os.environ},
        "temporary": _temporary(),
    }
    found.update(_limits())
    found.update(_package())
    return found


def _package() -> Dict[str, Any]:  # noqa: UP006
    try:
        from pydist import _core
    except Exception as error:
        return {"pydist": None, "pydist_error": "{}: {}".format(type(error).__name__, error)}  # noqa: UP032
    return {"pydist": _core.__version__, "pydist_error": None}


def _limits() -> Dict[str, Any]:  # noqa: UP006
    import resource

    names = {"open_files": resource.RLIMIT_NOFILE, "processes": getattr(resource, "RLIMIT_NPROC", None)}
    return {
        name: [n if n != resource.RLIM_INFINITY else None for n in resource.getrlimit(which)]
        for name, which in names.items()
        if which is not None
    }


def _addresses() -> List[str]:  # noqa: UP006
    found = []
    for family, target in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            probe = socket.socket(family, socket.SOCK_DGRAM)
        except OSError:
            continue
        try:
            # Nothing is sent: the system only chooses the interface.
            probe.connect((target, 9))
            found.append(probe.getsockname()[0])
        except OSError:
            pass
        finally:
            probe.close()
    try:
        for entry in socket.getaddrinfo(socket.gethostname(), 9, 0, socket.SOCK_STREAM):
            found.append(str(entry[4][0]).partition("%")[0])
    except OSError:
        pass
    return sorted(set(found), key=found.index)


def _quota() -> Optional[float]:  # noqa: UP045
    """The CPUs' worth of time that a container may use, where it is limited."""
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _temporary() -> Dict[str, Any]:  # noqa: UP006
    try:
        folder = tempfile.gettempdir()
        with tempfile.TemporaryFile():
            pass
        status = os.statvfs(folder)
    except OSError as error:
        return {"folder": None, "error": str(error)}
    return {"folder": folder, "free": status.f_bavail * status.f_frsize, "length": len(os.fsencode(folder))}


if __name__ == "__main__":
    print(MARK + json.dumps(facts()))
