"""A test that cannot be ended by its timeout costs its worker, and no more."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.tui.terminal import ROOT

HANGS = {
    "a loop that catches everything": """
def test_hangs():
    while True:
        try:
            time.sleep(60)
        except BaseException:
            pass
""",
    "a fixture's end": """
@pytest.fixture
def waits():
    yield
    threading.Event().wait()

def test_hangs(waits):
    time.sleep(60)
""",
    "code that holds the interpreter's lock": """
def test_hangs():
    mutex, library = ctypes.create_string_buffer(256), ctypes.PyDLL(None)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)
""",
}


@pytest.mark.parametrize("how", HANGS)
def test_a_hang_is_reported_with_its_place_and_the_others_run(how, tmp_path):
    (tmp_path / "conftest.py").write_text(
        "from tests import watchdog\nwatchdog.GRACE_S = 1\npytest_plugins = ['tests.watchdog']\n"
    )
    imports = "import ctypes, threading, time\nimport pytest\n"
    (tmp_path / "test_hang.py").write_text(imports + HANGS[how] + "\ndef test_after():\n    pass\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\ntimeout = 1\n")
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "1", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 1, found.stdout
    assert re.search(r"[12] failed, 1 passed", found.stdout)  # the test, and the process that its end cost
    assert "crashed while running 'test_hang.py::test_hangs'" in found.stdout
    assert "in test_hangs" in found.stderr or "in waits" in found.stderr
