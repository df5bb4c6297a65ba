"""DaskManager warns where Dask would carry the cookie over a network in clear text."""

import types
import warnings

import pytest

import pydist as d
from pydist import LaunchWorkerError, _network
from pydist.managers import _hosted, dask


class Client:
    """Stands for a client of Dask, which is connected to a scheduler and knows its workers."""

    asynchronous = False

    def __init__(self, scheduler: str, *workers: str) -> None:
        self.scheduler = types.SimpleNamespace(address=scheduler)
        self._workers = dict.fromkeys(workers, 1)

    def nthreads(self) -> dict[str, int]:
        return self._workers


@pytest.fixture(autouse=True)
def no_dask(monkeypatch):
    monkeypatch.setattr(_hosted, "need", lambda module, extra: types.SimpleNamespace(Client=Client))
    monkeypatch.setattr(dask, "_warned", False)


FAR = "tcp://192.0.2.7:8786"


@pytest.mark.parametrize(
    "addresses", [(FAR, "tcp://127.0.0.1:1"), ("tcp://127.0.0.1:1", FAR), ("tls://127.0.0.1:1", FAR)]
)
def test_plain_text_over_a_network_is_warned_of_once(addresses):
    client = Client(*addresses)
    with pytest.warns(
        UserWarning, match=r"192\.0\.2\.7:8786 is not encrypted.*distributed\.Security"
    ) as caught:
        d.DaskManager(client)._places()
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        d.DaskManager(client)._places()


@pytest.mark.parametrize(
    "addresses",
    [
        ("tls://192.0.2.7:8786", "tls://192.0.2.8:1"),
        ("wss://192.0.2.7:8786", "tls://192.0.2.8:1"),
        ("tcp://127.0.0.1:8786", "tcp://[::1]:1"),
        ("inproc://192.0.2.7/1/1", "inproc://192.0.2.7/1/4"),
    ],
)
def test_encryption_and_this_machine_are_not(addresses):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(d.DaskManager(Client(*addresses))._places()) == 1


def test_an_address_of_this_machine_is_not(monkeypatch):
    monkeypatch.setattr(_network, "own_addresses", lambda port: [f"198.51.100.4:{port}"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        d.DaskManager(Client("tcp://198.51.100.4:8786", "tcp://198.51.100.4:1"))._places()


def test_without_dask_workers_nothing_is_sent():
    with pytest.raises(LaunchWorkerError, match="no workers"):
        d.DaskManager(Client(FAR))._places()
