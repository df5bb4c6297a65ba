"""Modules and folders that workers get over the connection."""

import glob
import hashlib
import importlib
import io
import os
import shutil
import signal
import stat
import sys
import tempfile
import zipfile

import psutil
import pytest

import pydist as d
from pydist import _everywhere, _groups, _mirror
from support import Script, run_script, wait_until


@pytest.fixture
def source(tmp_path):
    """Give a folder that no worker has on its path."""
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


@pytest.fixture
def persistent():
    """Have nothing persist beyond a test."""
    yield
    _everywhere._persistent.clear()


def value_in(pid, module, name="value"):
    return d.remotecall_eval(f"import {module}; {module}.{name}", pid)


def copies_left():
    return glob.glob(os.path.join(tempfile.gettempdir(), "pydist-files-*"))


def test_a_file_goes_to_all_workers(workers, source):
    path = source / "sent_file.py"
    path.write_text("value = 1")
    for pid in workers:
        with pytest.raises(ModuleNotFoundError):
            value_in(pid, "sent_file")
    folders = d.upload(path)
    assert sorted(folders) == workers
    assert [value_in(pid, "sent_file") for pid in workers] == [1, 1]
    assert value_in(workers[0], "sent_file", "__file__") == f"{folders[workers[0]]}/sent_file.py"
    assert "sent_file" not in sys.modules


def test_the_workers_of_a_host_share_one_copy_that_is_sent_once(workers, source):
    (source / "random.bin").write_bytes(os.urandom(2_000_000))
    before = d.stats()["bytes_sent"]
    folders = d.sync_dir(source)
    assert len(set(folders.values())) == 1
    assert d.stats()["bytes_sent"] - before < 2_500_000
    assert stat.S_IMODE(os.stat(os.path.dirname(folders[workers[0]])).st_mode) == 0o700


def test_only_what_has_changed_goes_again_and_what_is_gone_is_removed(workers, source):
    (source / "random.bin").write_bytes(os.urandom(2_000_000))
    (source / "part").mkdir()
    (source / "part" / "gone.py").touch()
    (source / "synced.py").write_text("value = 1")
    folder = d.sync_dir(source)[workers[0]]
    assert [value_in(pid, "synced") for pid in workers] == [1, 1]
    (source / "synced.py").write_text("value = 2")
    (source / "part" / "gone.py").unlink()
    before = d.stats()["bytes_sent"]
    assert d.sync_dir(source)[workers[0]] == folder
    assert d.stats()["bytes_sent"] - before < 100_000
    assert {*os.listdir(folder)} - {"__pycache__"} == {"random.bin", "synced.py"}
    assert [value_in(pid, "synced") for pid in workers] == [1, 1]
    d.sync_dir(source, reload=True)
    assert [value_in(pid, "synced") for pid in workers] == [2, 2]


def test_a_module_is_reloaded_however_soon_and_alike_it_has_changed(workers, source):
    path = source / "alike.py"
    for value in range(5):
        path.write_text(f"value = {value}")
        os.utime(path, (1, 1))
        d.upload(path, reload=True)
        assert [value_in(pid, "alike") for pid in workers] == [value, value]


def test_what_is_imported_is_reloaded_before_what_imports_it(workers, source):
    (source / "outer_one.py").write_text("from inner_one import value")
    (source / "inner_one.py").write_text("value = 1")
    d.sync_dir(source)
    assert value_in(workers[0], "outer_one") == 1
    (source / "inner_one.py").write_text("value = 2")
    (source / "outer_one.py").write_text("from inner_one import value  # again")
    d.sync_dir(source, reload=True)
    assert value_in(workers[0], "outer_one") == 2


def package_in(source, name):
    package = source / name
    (package / "sub").mkdir(parents=True)
    (package / "__init__.py").write_text("value = 'package'")
    (package / "sub" / "__init__.py").write_text("value = 'sub'")
    (package / "data.txt").write_text("data")
    (package / ".secret").write_text("secret")
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "old.pyc").touch()
    (package / "run.sh").write_text("#!/bin/sh\n")
    (package / "run.sh").chmod(0o755)
    return package


def test_a_package_by_its_folder(workers, source):
    package = package_in(source, "sent_package")
    folder = d.upload(str(package), workers[0])[workers[0]]
    assert value_in(workers[0], "sent_package") == "package"
    assert value_in(workers[0], "sent_package.sub") == "sub"
    expected = {"__init__.py", "data.txt", "run.sh", "sub"}
    assert {*os.listdir(f"{folder}/sent_package")} - {"__pycache__"} == expected
    assert not os.path.exists(f"{folder}/sent_package/__pycache__/old.pyc")
    assert os.access(f"{folder}/sent_package/run.sh", os.X_OK)


@pytest.mark.parametrize("how", ["module", "name"])
def test_a_package_that_is_imported_here(workers, source, monkeypatch, how):
    name = f"named_package_{how}"
    package_in(source, name)
    monkeypatch.syspath_prepend(source)
    module = importlib.import_module(f"{name}.sub")
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, f"{name}.sub")
    importlib.import_module(name)
    d.upload(module if how == "module" else f"{name}.sub", pids=workers)
    assert [value_in(pid, f"{name}.sub") for pid in workers] == ["sub", "sub"]


def test_patterns_leave_out(workers, source):
    for name in ("kept.py", "left.csv", "data/one.py", "deep/data/two.py"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).touch()
    folder = d.sync_dir(source, workers[0], exclude=("*.csv", "data/*"))[workers[0]]
    found = sorted(os.path.relpath(f"{r}/{n}", folder) for r, _, names in os.walk(folder) for n in names)
    assert found == ["deep/data/two.py", "kept.py"]


def test_workers_that_come_later_get_what_persists_before_they_are_there(
    workers, fresh_workers, source, persistent
):
    path = source / "persists.py"
    path.write_text("value = 1")
    d.upload(path, persist=True)
    (later,) = fresh_workers(1)
    assert value_in(later, "persists") == 1
    path.write_text("value = 2")
    d.upload(path)
    (last,) = fresh_workers(1)
    assert value_in(last, "persists") == 2
    assert value_in(later, "persists") == 1


def test_a_worker_of_the_host_with_another_folder_for_temporary_files_gets_its_own(
    workers, fresh_workers, source, tmp_path
):
    (source / "elsewhere.py").write_text("value = 1")
    (other,) = fresh_workers(1, env={"TMPDIR": str(tmp_path)}, dir="/")
    folders = d.upload(source / "elsewhere.py", [*workers, other])
    assert folders[other].startswith(str(tmp_path))
    assert not folders[workers[0]].startswith(str(tmp_path))
    assert value_in(other, "elsewhere") == 1


def test_a_worker_can_send_too(workers, source):
    (source / "from_worker.py").write_text("value = 1")
    sent = d.remotecall_fetch(d.upload, workers[0], str(source / "from_worker.py"))
    assert list(sent) == [workers[1]]
    assert value_in(workers[1], "from_worker") == 1


def test_the_copy_goes_with_the_last_worker_whatever_ends_it(fresh_workers, source):
    (source / "goes.py").touch()
    one, two = fresh_workers(2)
    folder = os.path.dirname(d.upload(source / "goes.py", [one, two])[one])
    d.rmprocs(one)
    assert d.remotecall_fetch(os.path.isdir, two, folder)
    os.kill(d.remotecall_fetch(os.getpid, two), signal.SIGKILL)
    wait_until(lambda: not os.path.exists(folder) and not os.path.exists(f"{folder}.old"))


def test_the_copy_goes_with_process_1_that_crashes(source):
    (source / "crashes.py").touch()
    script = f"""
        import os, pydist as d
        (pid,) = d.addprocs(1)
        print(d.upload({str(source / "crashes.py")!r})[pid], flush=True)
        os.kill(os.getpid(), 9)
    """
    with Script(script) as run:
        run.finish(30)
        folder = os.path.dirname(run.out.strip())
        assert "pydist-files-" in folder
        wait_until(lambda: not os.path.exists(folder))
        run.wait_gone(5)


def test_one_that_has_gone_is_named_and_the_others_have_it(workers, fresh_workers, source):
    (source / "partly.py").write_text("value = 1")
    (gone,) = fresh_workers(1)
    d.rmprocs(gone)
    with pytest.raises(ExceptionGroup, match=f"process {gone}") as caught:
        d.upload(source / "partly.py", [gone, *workers])
    assert [type(error) for error in caught.value.exceptions] == [d.ProcessExitedException]
    assert value_in(workers[1], "partly") == 1


def test_what_cannot_be_sent_is_named(source):
    with pytest.raises(FileNotFoundError, match=r"no_such\.py"):
        d.upload(source / "no_such.py")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        d.upload("no_such_module")
    with pytest.raises(ValueError, match=r"sys.*no file"):
        d.upload(sys)
    with pytest.raises(ValueError, match="by value"):
        d.upload(sys.modules["__main__"])
    with pytest.raises(TypeError, match="int"):
        d.upload(3)
    with pytest.raises(NotADirectoryError, match="no_such"):
        d.sync_dir(source / "no_such")
    (source / "large.bin").write_bytes(bytes(2000))
    with pytest.raises(ValueError, match=r"2,001 bytes in 2 files.*large\.bin with 2,000"):
        (source / "small.bin").write_bytes(b"x")
        d.sync_dir(source, max_bytes=1000)


def test_links_stay_within_the_folder(workers, source, tmp_path):
    (source / "target.py").write_text("value = 1")
    (source / "inner_link.py").symlink_to("target.py")
    d.sync_dir(source)
    assert value_in(workers[0], "inner_link") == 1
    (tmp_path / "outside.txt").touch()
    (source / "outer_link.txt").symlink_to(tmp_path / "outside.txt")
    with pytest.raises(ValueError, match=r"outer_link\.txt leads out"):
        d.sync_dir(source)
    d.sync_dir(source, exclude=["outer_link.txt"])
    (source / "outer_link.txt").unlink()
    (source / "folder_link").symlink_to("/etc")
    with pytest.raises(ValueError, match="folder_link is a symbolic link"):
        d.sync_dir(source)
    (source / "folder_link").unlink()
    os.mkfifo(source / "pipe")
    with pytest.raises(ValueError, match="pipe is no file"):
        d.sync_dir(source)


def archive_of(name, mode=stat.S_IFREG | 0o600):
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        archive.writestr(info, b"data")
    return written.getvalue()


@pytest.mark.parametrize("name", ["../out.py", "/tmp/out.py", "a/../../out.py", "a//b", ".", "a\\b", ""])
def test_a_name_that_leads_out_of_the_folder_is_refused_there(workers, name):
    token = os.urandom(16).hex()
    for wanted in ({name: "0"}, {"fine.py": "0"}):
        if name or wanted == {name: "0"}:
            with pytest.raises(ValueError, match="no path within a folder"):
                d.remotecall_fetch(_mirror.apply, workers[0], token, archive_of(name), wanted, False)


def test_a_link_and_what_was_not_announced_are_refused_there(workers):
    token = os.urandom(16).hex()
    for archive in (archive_of("link", stat.S_IFLNK | 0o777), archive_of("other.py")):
        with pytest.raises(ValueError, match="no file that was announced"):
            d.remotecall_fetch(_mirror.apply, workers[0], token, archive, {"link": "0"}, False)
    with pytest.raises(ValueError, match="have not arrived as they were announced"):
        d.remotecall_fetch(_mirror.apply, workers[0], token, archive_of("a.py"), {"a.py": "0"}, False)


def test_a_folder_of_somebody_else_is_not_used(workers):
    token = os.urandom(16).hex()
    folder = _mirror.folder_of(token)
    folder.mkdir()
    folder.chmod(0o777)
    try:
        with pytest.raises(PermissionError, match="of this user alone"):
            d.remotecall_fetch(_mirror.apply, workers[0], token, b"", {}, False)
    finally:
        folder.rmdir()
    with pytest.raises(ValueError, match="names no folder"):
        _mirror.folder_of("../x")


OVERLAP = """
import os, time
from pydist import _mirror

def use(token, archive, wanted):
    folder = _mirror.apply(token, archive, wanted, False)
    time.sleep(0.003)
    os._exit(0 if os.path.exists(folder + "/a.py") else 1)

def overlap(token, archive, wanted):
    failed, running = 0, []
    for n in range(300):
        pid = os.fork()
        if pid == 0:
            try:
                use(token, archive, wanted)
            finally:
                os._exit(2)
        running.append(pid)
        time.sleep(0.0005 * (n % 12))
        while len(running) > n % 2:
            failed += os.waitpid(running.pop(0), 0)[1] != 0
    return failed + sum(os.waitpid(pid, 0)[1] != 0 for pid in running)

print(overlap(TOKEN, ARCHIVE, WANTED))
"""


def test_a_folder_stays_for_who_comes_as_the_last_one_goes():
    token = os.urandom(16).hex()
    wanted = {"a.py": hashlib.sha256(b"data").hexdigest()}
    names = f"TOKEN, ARCHIVE, WANTED = {token!r}, {archive_of('a.py')!r}, {wanted!r}\n"
    done = run_script(names + OVERLAP)
    assert (done.stdout, done.stderr) == ("0\n", "")
    wait_until(lambda: not os.path.exists(_mirror.folder_of(token)))


def test_a_folder_that_somebody_removes_is_made_anew(workers, source):
    (source / "anew.py").write_text("value = 1")
    folder = d.sync_dir(source)[workers[0]]
    before = d.remotecall_fetch(lambda: len(os.listdir("/proc/self/fd")), workers[0])
    shutil.rmtree(os.path.dirname(folder))
    assert d.sync_dir(source)[workers[0]] == folder
    assert [value_in(pid, "anew") for pid in workers] == [1, 1]
    assert d.remotecall_fetch(lambda: len(os.listdir("/proc/self/fd")), workers[0]) == before


def test_what_has_been_removed_since_it_was_found_is_sent_whole(workers, source, monkeypatch):
    (source / "whole.py").write_text("value = 1")
    folder = d.sync_dir(source)[workers[0]]
    call_each, asked = _groups.call_each, []

    def remove_then_call(pids, call):
        asked.append([*pids])
        if len(asked) == 2:
            shutil.rmtree(os.path.dirname(folder))
        return call_each(pids, call)

    monkeypatch.setattr(_groups, "call_each", remove_then_call)
    assert d.sync_dir(source, workers[0]) == {workers[0]: folder}
    assert asked[:3] == [[workers[0]]] * 3
    assert value_in(workers[0], "whole") == 1


def test_a_folder_whose_remover_was_killed_gets_another(workers, fresh_workers, source):
    (source / "killed.py").write_text("value = 1")
    (one,) = fresh_workers(1)
    folder = os.path.dirname(d.sync_dir(source, one)[one])
    (remover,) = (p for p in psutil.process_iter(["cmdline"]) if folder in (p.info["cmdline"] or ()))
    remover.kill()
    remover.wait(5)
    d.rmprocs(one)
    (two,) = fresh_workers(1)
    d.sync_dir(source, two)
    assert value_in(two, "killed") == 1
    d.rmprocs(two)
    wait_until(lambda: not os.path.exists(folder))


def test_nothing_is_left(workers):
    d.rmprocs(workers)
    wait_until(lambda: not copies_left(), 10)
