"""Workers that join and leave as they like."""

from __future__ import annotations

import shlex
import sys
from typing import Any, ClassVar

from .. import _cluster, _core, _network, _session, _tls
from .base import ClusterManager, Launched, WorkerConfig


class ElasticManager(ClusterManager):
    """Listens for workers, which something else starts; they join at any time and leave at any time.

    `addprocs` of it returns an empty list at once. From then on workers join.

    Parameters:
        addr: the address to listen on.
        port: the port; 0 for a free one.
        cookie: the secret of the cluster, which `cluster_cookie` sets; a random one by default.
        tls: True to encrypt connections on loopback too; `TlsFiles` to do so with one's own certificate. By
            default connections at an address beyond loopback are encrypted, with keys made for it.
        allow_plaintext: let an address that is not on loopback be used without encryption.

    Raises:
        OSError: it cannot listen there, or a file of `tls` cannot be read.
        RuntimeError: this is not process 1; or a cookie is given, and there are workers.
        ValueError: TLS cannot be as it is asked for; or the cookie is too short.

    Distributed.jl: `ElasticManager` of ClusterManagers.jl.

    >>> import pydist as d
    >>> manager = d.ElasticManager()
    >>> d.addprocs(manager)
    []
    >>> manager.address.rpartition(":")[0]
    '127.0.0.1'
    >>> manager.close()
    """

    _trusted: ClassVar[bool] = True
    _keeps_time: ClassVar[bool] = True
    _shares_config: ClassVar[bool] = False

    def __init__(
        self,
        addr: str = "127.0.0.1",
        port: int = 0,
        cookie: bytes | str | None = None,
        *,
        tls: bool | _tls.TlsFiles | None = None,
        allow_plaintext: bool = False,
    ) -> None:
        if not _session.is_head():
            raise RuntimeError("Only process 1 can add and remove workers")
        choice = _tls.check(tls, allow_plaintext)
        if cookie is not None:
            _cluster.cluster_cookie(cookie)
        _session.ensure_started()
        assert _session.session is not None
        _tls.use(choice)
        self._plaintext = allow_plaintext
        target = _network.resolve(addr, port)[0]
        scheme = _tls.scheme(_network.split_any(target)[0], choice, allow_plaintext)
        bound, self._listener = _core.bind_listener(f"{scheme}:{target}", _session.session.join_tag(), True)
        self._secured = scheme == "tls"
        self._bound = bound.removeprefix(f"{scheme}:")
        self._open = False

    @property
    def address(self) -> str:
        """Where it listens, as `HOST:PORT`."""
        return self._bound

    def addresses(self) -> list[str]:
        """The addresses at which workers may reach it: where it listens on all, those of this machine."""
        host, port = _network.split(self._bound)
        if not _network.is_wildcard(host):
            return [self._bound]
        return [*_network.own_addresses(port, host), f"127.0.0.1:{port}"]

    def command(self) -> str:
        """The shell line that starts a worker on this machine.

        The cookie is in a file that only this user can read. For another machine, copy the file, or leave out
        `--cookie-file` and set the environment variable PYDIST_COOKIE. The paths of `TlsFiles` are those of
        this machine, too.
        """
        assert _session.session is not None
        words = [sys.executable, "-m", "pydist", "worker"]
        for address in self.addresses():
            words += ["--connect", address]
        words += ["--cookie-file", _session.session.cookie_file()]
        if self._secured:
            files = _tls.used()
            words += ["--tls"] if files is None else files.words()
        if self._plaintext:
            words.append("--allow-plaintext")
        return shlex.join(words)

    def launch(self, params: dict[str, Any], launched: Launched) -> None:
        """Lets workers join from now on."""
        if not self._open:
            self._open = True
            _cluster.admit(self._listener, self)
            _core.open_listener(self._listener)

    def manage(self, pid: int, config: WorkerConfig, op: str) -> None:
        """Does nothing: workers look after themselves."""
        return

    def close(self) -> None:
        """Lets nobody join any more; the workers that have joined stay."""
        _core.close_listener(self._listener)
        _cluster.admit(self._listener, None)

    def __enter__(self) -> ElasticManager:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
