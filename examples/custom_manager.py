"""A cluster manager with a transport of its own: pipes to process 1, Unix sockets between workers.

    python examples/custom_manager.py -p 3

Take it as a template: `launch` starts the workers in whatever way they are started, `connect` returns streams
to and from one, and the worker's side calls `init_worker` and `process_messages`.
"""

import argparse
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from typing import Any

import pydist as d


class PipeManager(d.ClusterManager):
    """Starts workers on this machine that speak through their standard input and output."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.folder = ""

    def launch(self, params: dict[str, Any], launched: Any) -> None:
        """Starts the processes; each gets the path of the socket on which other workers reach it."""
        self.folder = tempfile.mkdtemp(prefix="pydist-pipes-")
        for i in range(self.n):
            path = os.path.join(self.folder, str(i))
            command = [params["exename"] or sys.executable, __file__, "worker", path]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            launched(d.WorkerConfig(process=process, userdata=path))

    def connect(self, pid: int, config: d.WorkerConfig) -> Any:
        """Connects to a worker: from process 1, which has its pipes, or from another worker."""
        if config.process is None:
            between = socket.socket(socket.AF_UNIX)
            between.connect(config.userdata)
            return between
        config.process.stdin.write(d.cluster_cookie().hex().encode() + b"\n")
        config.process.stdin.flush()
        return config.process.stdout, config.process.stdin

    def manage(self, pid: int, config: d.WorkerConfig, op: str) -> None:
        """Waits for the process of a worker that has left, and removes its socket."""
        if op == "finalize":
            config.process.wait(10)
            for stream in (config.process.stdin, config.process.stdout):
                with contextlib.suppress(BrokenPipeError):  # its last bytes may find nobody
                    stream.close()
            if os.path.exists(config.userdata):
                os.unlink(config.userdata)
            if os.path.isdir(self.folder) and not os.listdir(self.folder):
                shutil.rmtree(self.folder)

    def kill(self, pid: int, config: d.WorkerConfig) -> None:
        """Ends a worker that does not end when it is asked to."""
        config.process.kill()


def worker(path: str) -> None:
    """Runs a worker, connected by its standard streams, which are kept free of what calls print."""
    incoming, outgoing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    cookie = incoming.readline().strip()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    d.init_worker(cookie, PipeManager(0))
    d.process_messages(incoming, outgoing)
    threading.Thread(target=accept, args=(listener,), daemon=True).start()
    threading.Event().wait()


def accept(listener: socket.socket) -> None:
    """Serves the workers that connect to this one."""
    while True:
        connection, _ = listener.accept()
        d.process_messages(connection)


def main() -> None:
    """Starts workers, and has each call the next."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-p", type=int, default=3, metavar="N", help="number of workers")
    pids = d.addprocs(PipeManager(parser.parse_args().p))
    for pid, other in zip(pids, pids[1:] + pids[:1], strict=True):
        square = d.remotecall_fetch(d.remotecall_fetch, pid, pow, other, pid, 2)
        print(f"{pid} squared is {square}, says worker {other} to worker {pid}")
    d.rmprocs(pids)


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(sys.argv[2])
    else:
        main()
