"""Signals: the first asks, the second ends, helpers leave both to the run and end with it."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from rlef_jax.training.interrupt import StopRequest, serve_parent


def test_the_first_signal_asks_and_the_old_meaning_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop() and stop.signal is signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def run(program):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_the_second_signal_ends_the_process_at_once():
    process = run("""
        import time
        from rlef_jax.training.interrupt import StopRequest
        with StopRequest() as stop:
            print("ready", flush=True)
            while True:
                time.sleep(0.01)
        """)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 128 + signal.SIGINT
    assert errors.strip() == "SIGINT: saving, then stopping; once more to stop at once"


def test_a_helper_ignores_signals_and_ends_with_its_parent():
    parent = run("""
        import subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c",
            "import time; from rlef_jax.training.interrupt import serve_parent; serve_parent();"
            "print('up', flush=True); time.sleep(60)"], stdout=subprocess.PIPE)
        child.stdout.readline()
        print(child.pid, flush=True)
        time.sleep(60)
        """)
    child = int(parent.stdout.readline())
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(child, number)
    time.sleep(0.2)
    os.kill(child, 0)  # still there
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 10
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(child)


def late_helper():
    """A helper whose imports take longer than its run lives."""
    print(os.getpid(), flush=True)
    time.sleep(1.0)
    serve_parent()
    time.sleep(60)


def test_a_helper_whose_run_was_killed_before_it_was_ready_ends_too():
    parent = run(f"""
        import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})
        from multiprocessing import get_context
        from tests.training.test_interrupt import late_helper
        get_context("spawn").Process(target=late_helper).start()
        """)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.communicate(timeout=30)  # the helper has the same output, which ends with it
    assert not alive(child)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_helper_does_not_import_the_program_that_started_it(tmp_path):
    program = tmp_path / "program.py"
    program.write_text("""
print("imported", flush=True)
if __name__ == "__main__":
    from rlef_jax.training.interrupt import helper_process
    with helper_process() as pool:
        print(pool.submit(max, 3, 4).result())
""")
    done = subprocess.run(
        [sys.executable, str(program)], env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == "imported\n4\n", done.stderr
