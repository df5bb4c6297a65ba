"""The ways in which a cookie comes to a worker."""

import os

import pytest

from pydist import _cookies

COOKIE = b"sixteen bytes or more"


def written(tmp_path, data, mode=0o600):
    path = tmp_path / "cookie"
    path.write_bytes(data)
    path.chmod(mode)
    return str(path)


def test_a_file_that_its_owner_alone_can_read_is_taken(tmp_path):
    assert _cookies.read_file(written(tmp_path, COOKIE + b"\n")) == COOKIE


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o601])
def test_a_file_that_others_can_read_is_refused(tmp_path, mode):
    with pytest.raises(PermissionError, match="chmod 600"):
        _cookies.read_file(written(tmp_path, COOKIE, mode))


def test_a_file_of_another_user_is_refused(tmp_path, monkeypatch):
    path = written(tmp_path, COOKIE)
    monkeypatch.setattr(os, "getuid", lambda: os.stat(path).st_uid + 1)
    with pytest.raises(PermissionError, match="another user"):
        _cookies.read_file(path)


def test_the_environment_variable_is_removed(monkeypatch):
    monkeypatch.setenv("PYDIST_COOKIE", COOKIE.decode())
    assert _cookies.take_from_environment() == COOKIE
    assert "PYDIST_COOKIE" not in os.environ
    assert _cookies.take_from_environment() is None


def test_the_environment_variable_is_removed_where_a_file_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv("PYDIST_COOKIE", "another cookie of the user")
    assert _cookies.find(written(tmp_path, COOKIE)) == COOKIE
    assert "PYDIST_COOKIE" not in os.environ


def test_just_the_first_line_of_the_input_is_read():
    read, write = os.pipe()
    os.write(write, COOKIE + b"\nmore")
    os.close(write)
    assert _cookies.read_line(read) == COOKIE
    assert os.read(read, 10) == b"more"
    os.close(read)


@pytest.mark.parametrize("data", [b"", b"\n", b"too short\n"])
def test_an_input_without_a_cookie_is_refused(data):
    read, write = os.pipe()
    os.write(write, data)
    os.close(write)
    with pytest.raises(ValueError, match="cookie"):
        _cookies.read_line(read)
    os.close(read)


def test_hexadecimal_digits_stand_for_their_bytes():
    raw = bytes(range(32))
    assert _cookies.secret(raw.hex().encode()) == _cookies.secret(raw) == raw
    assert _cookies.secret(b"0123456789abcdef") == b"0123456789abcdef"
    assert _cookies.secret(b"not hexadecimal digits at all, is it") == b"not hexadecimal digits at all, is it"
    assert _cookies.join_tag(raw.hex().encode()) == _cookies.join_tag(raw) != _cookies.join_tag(raw[::-1])


def test_a_short_cookie_is_refused():
    for cookie in (b"", b"x" * 15, "x" * 15):
        with pytest.raises(ValueError, match="16"):
            _cookies.check(cookie)
    with pytest.raises(TypeError, match="int"):
        _cookies.check(16)
