"""No run of the tests hangs: it ends with a sentence, and never as if all were well."""

from __future__ import annotations

import pytest

from tests.running.conftest import Run

EXIT = "The tests are over, but the interpreter has not ended within {} s."


def test_a_run_that_takes_too_long_is_ended(run: Run) -> None:
    """Whatever it does when its time is over."""
    done = run("def test_hangs(): import threading; threading.Event().wait()", session_bound=2)
    assert done.returncode == 1
    assert done.stderr.endswith("The run has taken more than 2 s.\n")


def test_a_test_that_outlives_its_time_out_is_ended_with_its_children(run: Run) -> None:
    """What pytest-timeout raises may be lost, as in a finalizer. Told are what failed before and where it hangs."""
    done = run(
        """
        import contextlib, subprocess, sys, threading
        import pytest

        def test_before():
            assert False

        @pytest.mark.timeout(2)
        def test_hangs():
            subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait()"])  # holds the pipes
            while True:
                with contextlib.suppress(BaseException):
                    threading.Event().wait()
        """,
        test_grace=1,
    )
    assert done.returncode == 1
    sentence = "test_it.py::test_hangs has taken 3 s and cannot be ended by its time-out."
    assert done.stderr.endswith(f"{sentence}\nFAILED test_it.py::test_before\n")
    assert "in test_hangs" in done.stderr


@pytest.mark.parametrize(
    ("statement", "code"), [("pass", 1), ("assert False", 1), ("raise KeyboardInterrupt", 2), ("pytest.exit('', 7)", 7)]
)
def test_a_thread_that_never_ends_does_not_keep_the_interpreter(run: Run, statement: str, code: int) -> None:
    """The exit code is that of the tests, or 1 where they passed."""
    done = run(
        f"""
        import threading
        import pytest

        def test_leaves_a_thread():
            threading.Thread(target=threading.Event().wait).start()
            {statement}
        """,
        exit_bound=1,
    )
    assert done.returncode == code
    assert EXIT.format(1) in done.stderr


def test_a_garbage_collection_that_never_ends_does_not_keep_the_interpreter(run: Run) -> None:
    """Neither that of pytest after the last test."""
    done = run(
        """
        import threading

        class Waits:
            def __init__(self):
                self.me = self

            def __del__(self):
                threading.Event().wait()

        def test_leaves_garbage():
            import gc
            gc.disable()
            Waits()
        """,
        exit_bound=3,
    )
    assert done.returncode == 1
    assert "1 passed" in done.stdout
    assert EXIT.format(3) in done.stderr
    assert "in __del__" in done.stderr


def test_a_finalizer_that_never_ends_does_not_keep_the_interpreter(run: Run) -> None:
    """Nor what the interpreter does last, when no thread of Python runs any more."""
    done = run(
        """
        import threading

        class Waits:
            def __init__(self):
                self.lock = threading.Lock()
                self.lock.acquire()

            def __del__(self):
                self.lock.acquire()

        waits = Waits()

        def test_nothing():
            pass
        """,
        exit_bound=3,
    )
    assert done.returncode == 1
    assert "1 passed" in done.stdout
    assert "Timeout (" in done.stderr


def test_a_run_that_ends_by_itself_is_left_alone(run: Run) -> None:
    """The usual case: nothing on stderr, and exit code 0."""
    done = run("def test_nothing(): pass")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
