"""The keywords of `addprocs`, checked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from .. import _config, _tls
from .base import ClusterManager

TOPOLOGIES = ("all_to_all", "master_worker", "custom")


def check(manager: ClusterManager, params: dict[str, Any]) -> dict[str, Any]:
    """Adds the defaults to the keywords of `addprocs`.

    Raises:
        TypeError: an unknown keyword, or one of the wrong type.
        ValueError: a value that makes no sense.
    """
    made = manager.default_params()
    for name, value in params.items():
        if name not in made:
            raise TypeError(
                f"addprocs() got an unexpected keyword argument {name!r}; it takes {', '.join(sorted(made))}"
            )
        if value is not None:
            made[name] = value
    if made["topology"] not in TOPOLOGIES:
        raise ValueError(
            f"unknown topology {made['topology']!r}; it is 'all_to_all', 'master_worker' or 'custom'"
        )
    flags = made["exeflags"]
    made["exeflags"] = flags.split() if isinstance(flags, str) else [str(flag) for flag in flags]
    for name in ("dir", "exename"):
        if made[name] is not None:
            made[name] = os.fspath(made[name])
    if not isinstance(made["env"], Mapping):
        raise TypeError(f"env must be a mapping, not {type(made['env']).__name__}")
    made["env"] = {str(name): str(value) for name, value in made["env"].items()}
    made["tls"] = _tls.check(made["tls"], made["allow_plaintext"])
    if made["timeout"] is not None and not made["timeout"] > 0:
        raise ValueError(f"timeout must be a positive number of seconds, not {made['timeout']!r}")
    _config.output()  # raises here what is wrong with it
    made["timeout"] = _config.worker_timeout() if made["timeout"] is None else float(made["timeout"])
    return made
