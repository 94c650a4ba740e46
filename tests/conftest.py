"""How all tests are run."""

import signal

from hypothesis import HealthCheck, settings

pytest_plugins = [f"tests.running.{name}" for name in ("coroutines", "remains", "watchdog", "workers")]

# How long an example takes says nothing on a machine that is busy with something else.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

# Under nohup a process that is started would ignore SIGHUP, too. A handler is not inherited.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)
