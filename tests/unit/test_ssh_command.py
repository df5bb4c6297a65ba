"""Words for shells, and the command lines of ssh."""

import shutil
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydist import LaunchWorkerError
from pydist.managers import _frames
from pydist.managers._ssh_command import (
    Login,
    check_environment,
    flags,
    quote,
    quote_csh,
    quote_path,
    quote_posix,
    remote_command,
)

STRANGE = [
    "",
    "plain",
    "two words",
    " ",
    "it's",
    "''",
    '"double"',
    "back\\slash\\",
    "$HOME `id` $(id)",
    "line\nline\n",
    "tab\there",
    "!bang !! !$",
    "a*b?[c]{d,e}~",
    "~root",
    "#comment",
    "-flag",
    "=x",
    "grüße € 日本",
    "a;b&c|d<e>f(g)",
    "%s %h",
]
SHELLS = {"sh": quote_posix, "bash": quote_posix, "dash": quote_posix, "csh": quote_csh, "tcsh": quote_csh}


def echoed(shell, words):
    """Give the words that a shell makes of a command line."""
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell}")
    code = "import os,sys; os.write(1, b'\\0'.join(map(os.fsencode, sys.argv[1:])))"
    line = " ".join([quote_posix(sys.executable), "-c", SHELLS[shell](code), *words])
    options = ["-f"] if "csh" in shell else []
    done = subprocess.run([shell, *options, "-c", line], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().split("\0")


@pytest.mark.parametrize("shell", SHELLS)
def test_a_real_shell_reads_what_was_quoted(shell):
    assert echoed(shell, [SHELLS[shell](text) for text in STRANGE]) == STRANGE


@pytest.mark.parametrize("shell", ["sh", "tcsh"])
@settings(max_examples=8, deadline=None)
@given(
    texts=st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=20), min_size=20)
)
def test_a_real_shell_reads_any_text(shell, texts):
    assert echoed(shell, [SHELLS[shell](text) for text in texts]) == texts


@pytest.mark.parametrize(
    ("path", "posix"),
    [("~", "~"), ("~/", "~/"), ("~/my venv", "~/'my venv'"), ("~me", "'~me'"), ("/a b", "'/a b'")],
)
def test_paths_in_the_home_folder(path, posix):
    assert quote_path(path, "posix") == posix


def test_no_word_holds_a_nul():
    with pytest.raises(ValueError, match="NUL"):
        quote("a\0b", "posix")


def test_what_the_other_host_runs():
    env = {"SECRET": "s", "PATH": "/a b", "PYTHONPATH": "/p", "LD_PRELOAD": "x", "HTTP_PATH": "no"}
    command = remote_command("~/venv/bin/python", "/my dir", env, "posix")
    assert command.startswith(
        "cd '/my dir' && exec env 'PATH=/a b' PYTHONPATH=/p LD_PRELOAD=x ~/venv/bin/python -c "
    )
    assert "SECRET" not in command
    assert "HTTP_PATH" not in command
    assert remote_command("python3", None, {}, "csh").startswith("exec python3 -c ")


@pytest.mark.parametrize("env", [{"": "x"}, {"a=b": "x"}, {"a": "x\0"}, {"a\0": "x"}])
def test_what_no_environment_can_hold(env):
    with pytest.raises(ValueError, match="env: "):
        check_environment(env)


def test_flags():
    assert flags("-v -o 'A=b c'") == ["-v", "-o", "A=b c"]
    assert flags(("-p", 22)) == ["-p", "22"]
    for wrong in (5, b"-v"):
        with pytest.raises(TypeError, match="sshflags"):
            flags(wrong)


def test_the_command_lines_of_ssh():
    login = Login("ssh", ("-v",), "::1", "me", 2222)
    words = login.session("run this")
    assert words[:2] == ["ssh", "-v"]
    assert words[-7:] == ["-p", "2222", "-l", "me", "--", "::1", "run this"]
    assert "ControlMaster=no" in words
    assert login.tunnel("/f%/t2", "127.0.0.1", 9)[-1] == "exec cat"
    assert "/f%%/t2:127.0.0.1:9" in login.tunnel("/f%/t2", "127.0.0.1", 9)
    words = login.shared_tunnel("/f/m", "/f/t2", "::1", 9)
    assert words[-1] == "::1"
    assert "/f/t2:[::1]:9" in words
    assert "ControlPath=/f/m" in words
    assert "ControlPath=/f/m" in login.session("x", "/f/m")
    assert Login("s", (), "h").session("x")[-3:] == ["--", "h", "x"]


@given(st.binary(max_size=200), st.lists(st.integers(1, 50)))
def test_frames_arrive_however_they_are_cut(payload, cuts):
    data = b"banner\nno end " + _frames.MARK + b"\n"
    data += _frames.frame(b"O", 12, payload) + _frames.frame(b"X", 0, b"-9")
    decoder = _frames.Decoder()
    found = []
    for cut in cuts:
        found += decoder.feed(data[:cut])
        data = data[cut:]
    found += decoder.feed(data)
    assert found == [(b"O", 12, payload), (b"X", 0, b"-9")]


@given(st.binary(max_size=300))
def test_what_is_no_frame_is_an_error(data):
    decoder = _frames.Decoder()
    list(decoder.feed(_frames.MARK + b"\n"))
    with pytest.raises(LaunchWorkerError, match="no frame"):
        list(decoder.feed(b"?" + data + bytes(_frames.HEADER_MAX)))
