"""Count words and word pairs over thousands of files: the standard library's own sources.

    python examples/ngrams.py -p 2

The files are dealt into chunks; the counts of a chunk are merged as soon as it is done.
"""

import argparse
import re
import sysconfig
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from time import perf_counter

import pydist

WORD = re.compile(r"[A-Za-z_]\w*")
CHUNKS_PER_WORKER = 4

Counts = tuple[Counter[str], Counter[str]]


def corpus(limit: int | None = None) -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    files = (path for path in root.rglob("*.py") if "site-packages" not in path.parts)
    return sorted(files)[:limit]


def deal(files: list[Path], chunks: int) -> list[list[Path]]:
    """Deal files into chunks of about the same size in bytes."""
    by_size = sorted(files, key=lambda path: path.stat().st_size, reverse=True)
    return [chunk for chunk in (by_size[i::chunks] for i in range(chunks)) if chunk]


def count_files(files: Iterable[Path]) -> Counts:
    """Count the words and the pairs of neighbouring words; a pair does not cross files."""
    words: Counter[str] = Counter()
    pairs: Counter[str] = Counter()
    for path in files:
        found = WORD.findall(path.read_text(encoding="utf-8", errors="replace"))
        words.update(found)
        pairs.update(map(" ".join, pairwise(found)))
    return words, pairs


def count_on(workers: list[int], files: list[Path]) -> Counts:
    words: Counter[str] = Counter()
    pairs: Counter[str] = Counter()
    chunks = deal(files, CHUNKS_PER_WORKER * len(workers))
    futures = [
        pydist.remotecall(count_files, workers[i % len(workers)], chunk) for i, chunk in enumerate(chunks)
    ]
    for done, future in enumerate(pydist.as_completed(futures), start=1):
        chunk_words, chunk_pairs = future.fetch()
        words.update(chunk_words)
        pairs.update(chunk_pairs)
        print(f"  {done} of {len(chunks)} chunks: {words.total():,} words so far")
    return words, pairs


def report(title: str, counts: Counter[str]) -> None:
    print(f"{title}: {counts.total()} in all, {len(counts)} different")
    for item, count in sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))[:5]:
        print(f"  {count:>9} {item}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-p", "--workers", type=int, default=2, help="worker processes (default 2)")
    parser.add_argument("--files", type=int, default=None, help="files to read (default all)")
    options = parser.parse_args(argv)
    files = corpus(options.files)

    print(f"{len(files)} files, one process ...")
    begin = perf_counter()
    expected = count_files(files)
    alone = perf_counter() - begin

    with pydist.cluster(options.workers) as workers:
        print(f"{len(files)} files, workers {workers}:")
        begin = perf_counter()
        words, pairs = count_on(workers, files)
        together = perf_counter() - begin

    if (words, pairs) != expected:
        raise SystemExit("the cluster and one process disagree")
    report("words", words)
    report("pairs", pairs)
    print(f"one process: {alone:.3f} s   cluster: {together:.3f} s   ratio: {alone / together:.2f}")


if __name__ == "__main__":
    main()
