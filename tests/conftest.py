"""How all tests are run."""

pytest_plugins = ["tests.running.coroutines", "tests.running.remains", "tests.running.watchdog"]
