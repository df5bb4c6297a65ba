"""The first ten minutes with pydist: workers, remote calls, a parallel map, a remote error.

    python examples/quickstart.py -p 2

Everything defined here reaches the workers by itself; nothing has to be importable there.
"""

import argparse
import os
import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import pydist


def standard_library_files(limit: int | None = None) -> list[str]:
    root = Path(sysconfig.get_path("stdlib"))
    files = (path for path in root.rglob("*.py") if "site-packages" not in path.parts)
    return [str(path) for path in sorted(files)][:limit]


def count_words(path: str) -> int:
    return len(Path(path).read_text(encoding="utf-8", errors="replace").split())


def parse_port(text: str) -> int:
    return int(text)


def show_calls(workers: list[int]) -> None:
    print(f"This is process {pydist.myid()} of {pydist.procs()}; its pid is {os.getpid()}.")
    for worker in workers:
        print(f"  worker {worker}: pid {pydist.remotecall_fetch(os.getpid, worker)}")
    future = pydist.remotecall(pow, workers[0], 2, 100)
    print(f"A future holds what a call returns: 2 ** 100 = {future.fetch()}")


def show_map(files: list[str]) -> None:
    print(f"Counting the words of {len(files)} files of the standard library ...")
    begin = perf_counter()
    expected = [count_words(path) for path in files]
    alone = perf_counter() - begin

    begin = perf_counter()
    counts = pydist.pmap(count_words, files)
    together = perf_counter() - begin

    if counts != expected:
        raise SystemExit("pmap and the loop disagree")
    print(f"words: {sum(counts)}")
    print(f"one process: {alone:.3f} s   cluster: {together:.3f} s   ratio: {alone / together:.2f}")


def show_error(worker: int) -> None:
    print(f"An error on worker {worker} is caught here by its own class:")
    try:
        pydist.remotecall_fetch(parse_port, worker, "eighty")
    except ValueError as error:
        print("".join(traceback.format_exception(error)))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-p", "--workers", type=int, default=2, help="worker processes (default 2)")
    parser.add_argument("--files", type=int, default=None, help="files to read (default all)")
    options = parser.parse_args(argv)

    begin = perf_counter()
    workers = pydist.addprocs(options.workers)
    print(f"Started workers {workers} in {perf_counter() - begin:.3f} s.")

    show_calls(workers)
    show_map(standard_library_files(options.files))
    show_error(workers[0])

    pydist.rmprocs(workers)
    print(f"The workers are gone; processes left: {pydist.procs()}")


if __name__ == "__main__":
    main()
