"""What is imported only when it is used."""

import subprocess
import sys

import pytest

import pydist as d
from pydist.managers import _hosted


def test_importing_pydist_imports_no_framework():
    code = (
        "import sys, pydist as d; d.RayManager, d.DaskManager; print({'ray', 'distributed'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.parametrize(("module", "manager"), [("ray", "RayManager"), ("distributed", "DaskManager")])
def test_a_framework_that_is_missing_is_named_with_its_extra(monkeypatch, module, manager):
    monkeypatch.setitem(sys.modules, module, None)
    extra = {"ray": "ray", "distributed": "dask"}[module]
    with pytest.raises(ImportError, match=rf"{module} is not installed.*pydist\[{extra}\]"):
        getattr(d, manager)(1)


def test_a_module_that_a_framework_lacks_is_left_to_its_own_error(monkeypatch):
    def fails(name):
        raise ModuleNotFoundError("No module named 'other'", name="other")

    monkeypatch.setattr(_hosted.importlib, "import_module", fails)
    with pytest.raises(ModuleNotFoundError, match="other"):
        _hosted.need("ray", "ray")


def test_no_other_name_is_made_up():
    with pytest.raises(AttributeError, match="no_such_name"):
        d.no_such_name  # noqa: B018
