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


def run_pytest(folder, tests, *options):
    """Runs a file of tests under the watchdog, with a second for each of its limits."""
    (folder / "conftest.py").write_text(
        "from tests import watchdog\nwatchdog.GRACE_S = 1\npytest_plugins = ['tests.watchdog']\n"
    )
    (folder / "test_hang.py").write_text(f"import atexit, ctypes, threading, time\nimport pytest\n{tests}")
    (folder / "pytest.ini").write_text("[pytest]\ntimeout = 1\n")
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-p", "no:cacheprovider"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("how", HANGS)
def test_a_hang_is_reported_with_its_place_and_the_others_run(how, tmp_path):
    found = run_pytest(tmp_path, HANGS[how] + "\ndef test_after():\n    pass\n", "-n", "1")
    assert found.returncode == 1, found.stdout
    assert re.search(r"[12] failed, 1 passed", found.stdout)  # the test, and the process that its end cost
    assert "crashed while running 'test_hang.py::test_hangs'" in found.stdout
    assert "in test_hangs" in found.stderr or "in waits" in found.stderr


def test_a_process_that_does_not_end_after_its_last_test_is_ended(tmp_path):
    found = run_pytest(
        tmp_path,
        "def forever():\n    threading.Event().wait()\n\natexit.register(forever)\ndef test_passes():\n    pass\n",
    )
    assert "1 passed" in found.stdout
    assert found.returncode == 1
    assert "in forever" in found.stderr


def test_a_test_without_a_limit_takes_its_time(tmp_path):
    found = run_pytest(tmp_path, "def test_is_slow():\n    time.sleep(3)\n", "--timeout", "0")
    assert found.returncode == 0, found.stderr
