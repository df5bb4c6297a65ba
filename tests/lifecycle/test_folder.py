"""Where the sockets of a cluster lie."""

import os
import stat
import subprocess
import sys
from pathlib import Path

CALL = """
import os, pydist as d
(pid,) = d.addprocs(1)
print(d.remotecall_fetch(abs, pid, -7), d._session.session.folder)
"""


def run(tmpdir: Path) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", CALL],
        env={**os.environ, "TMPDIR": str(tmpdir)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    value, folder = done.stdout.split()
    return value, folder


def test_a_long_path_of_temporary_files_does_not_matter(tmp_path):
    long = tmp_path / ("x" * 120)
    long.mkdir()
    value, folder = run(long)
    assert value == "7"
    assert not folder.startswith(str(long))


def test_the_folder_of_temporary_files_is_used_where_it_fits(tmp_path_factory):
    short = Path("/tmp") / f"pd{os.getpid()}"
    short.mkdir(mode=0o700)
    try:
        value, folder = run(short)
        assert value == "7"
        assert folder.startswith(str(short))
        assert not list(short.iterdir())
    finally:
        short.rmdir()


def test_the_folder_is_closed_to_others():
    code = "import os, pydist as d; d.addprocs(1); print(os.stat(d._session.session.folder).st_mode)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert stat.S_IMODE(int(done.stdout)) == 0o700
