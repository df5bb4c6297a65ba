"""What workers cost to start and to have."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil

from benches import limits
from benches.limits import limit
from benches.model import Contestant, Operation, Reading, Row, Scale
from benches.rows.common import compete, ours
from benches.systems import SYSTEMS, ForkPool, ProcessPool, Pydist, SpawnPool, System
from benches.work import nothing

FEW = 2
IMPORTS = {
    "pydist": (),
    "multiprocessing.pool": (),
    "concurrent.futures.process": (),
    "joblib": ("joblib",),
    "distributed": ("distributed",),
    "ray": ("ray",),
    "mpi4py.futures": ("mpi4py", "program:mpiexec"),
    "ipyparallel": ("ipyparallel",),
}


@contextmanager
def start(
    scale: Scale, system: type[System], count: Callable[[Scale], int], **options: str
) -> Iterator[Operation]:
    """Start workers until as many calls have been answered as there are workers."""

    def once() -> None:
        cluster = system(count(scale), **options)
        cluster.open()
        started.append(cluster)
        cluster.call_each(nothing)

    started: list[System] = []
    yield Operation(once, after=lambda: started.pop().close())


@contextmanager
def importing(scale: Scale, module: str) -> Iterator[Reading]:
    """Read off the seconds that an import takes in an interpreter that has just started."""
    code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"

    def take() -> float:
        command = [sys.executable, "-c", code]
        return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)

    take()
    yield Reading(take)


def processor_seconds() -> dict[int, float]:
    """Return the processor time of this process and of each that is below it now."""
    me = psutil.Process()
    taken: dict[int, float] = {}
    for each in [me, *me.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            times = each.cpu_times()
            taken[each.pid] = times.user + times.system
    return taken


@contextmanager
def idle_processor(scale: Scale, system: type[System]) -> Iterator[Reading]:
    """Read off the processor time of this process and all below it while nothing is asked of them."""

    def take() -> float:
        before = processor_seconds()
        time.sleep(scale.idle_seconds)
        return sum(seconds - before.get(pid, 0.0) for pid, seconds in processor_seconds().items())

    with system(FEW) as cluster:
        cluster.each_answers()
        time.sleep(scale.idle_seconds / 5)
        yield Reading(take)


@contextmanager
def idle_memory(scale: Scale, system: type[System]) -> Iterator[Reading]:
    """Read off the proportional set size of a worker that has answered calls."""
    with system(FEW) as cluster:
        workers = [psutil.Process(ospid) for ospid in cluster.worker_processes()]
        yield Reading(lambda: sum(each.memory_full_info().pss for each in workers) / len(workers))


@contextmanager
def head_growth(scale: Scale) -> Iterator[Reading]:
    """Read off the memory that each further worker takes in process 1."""
    me = psutil.Process()

    def take() -> float:
        more = scale.crowd - FEW
        with Pydist(FEW, topology="master_worker") as few:
            few.each_answers()
            before = me.memory_full_info().uss
            with Pydist(more, topology="master_worker") as many:
                many.each_answers()
                return max(0.0, (me.memory_full_info().uss - before) / more)

    yield Reading(take)


def importers() -> tuple[Contestant, ...]:
    return tuple(
        ours(importing, module=module)
        if module == "pydist"
        else Contestant(module, "peer", lambda scale, module=module: importing(scale, module), needs)
        for module, needs in IMPORTS.items()
    )


def crowd(scale: Scale) -> int:
    return scale.crowd


def star(scale: Scale) -> int:
    return scale.star


def few(scale: Scale) -> int:
    return FEW


ROWS = (
    Row(
        name="start",
        title=lambda scale: f"start of {FEW} workers, each answers a call",
        contestants=(
            *compete(start, SYSTEMS, count=few),
            limit("bare interpreters", limits.interpreters, count=few),
        ),
    ),
    Row(
        name="start_crowd",
        title=lambda scale: f"start of {scale.crowd} workers",
        contestants=(
            *compete(start, (Pydist, SpawnPool, ForkPool, ProcessPool), count=crowd),
            limit("bare interpreters", limits.interpreters, count=crowd),
        ),
        samples=1,
        warm=False,
    ),
    Row(
        name="start_star",
        title=lambda scale: f"start of {scale.star} workers in a star",
        contestants=(
            *compete(start, (Pydist,), count=star, topology="master_worker"),
            limit("bare interpreters", limits.interpreters, count=star),
        ),
        samples=1,
        warm=False,
    ),
    Row(
        name="import",
        title=lambda scale: "import, added to a bare interpreter",
        contestants=importers(),
    ),
    Row(
        name="idle_memory",
        title=lambda scale: "memory of an idle worker (PSS)",
        contestants=(
            *compete(idle_memory, SYSTEMS),
            limit("bare interpreter", limits.interpreter_memory),
        ),
        unit="B",
        samples=1,
    ),
    Row(
        name="idle_processor",
        title=lambda scale: f"processor time of an idle cluster in {scale.idle_seconds:g} s",
        contestants=(*compete(idle_processor, SYSTEMS), limit("sleeping process", limits.sleeping)),
        samples=1,
    ),
    Row(
        name="head_growth",
        title=lambda scale: f"memory of process 1 for each of {scale.crowd} workers",
        contestants=(ours(head_growth),),
        unit="B",
        samples=1,
    ),
)
