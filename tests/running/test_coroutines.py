"""A coroutine that waits in vain is cancelled, says where, and leaves nothing to the next test."""

from __future__ import annotations

from tests.running.conftest import Run


def test_a_coroutine_says_what_it_waited_for(run: Run) -> None:
    """It leaves its contexts on a loop that runs, and the next test passes."""
    done = run(
        """
        import asyncio, contextlib
        import pytest

        left = False

        @contextlib.asynccontextmanager
        async def context():
            global left
            try:
                yield
            finally:
                await asyncio.sleep(0)
                left = True

        @pytest.mark.timeout(4)
        async def test_waits():
            async with context():
                await asyncio.Event().wait()

        async def test_next():
            assert left
        """
    )
    assert done.returncode == 1
    assert "1 failed, 1 passed" in done.stdout
    assert "waited for more than 2 s at test_it.py:19, in test_waits: await asyncio.Event().wait()" in done.stdout


def test_a_time_out_of_the_tests_own_stays(run: Run) -> None:
    """Another TimeoutError is not taken for the bound's."""
    done = run("async def test_fails(): raise TimeoutError('my own')")
    assert "TimeoutError: my own" in done.stdout
    assert "waited for" not in done.stdout


def test_fixtures_are_bounded_too(run: Run) -> None:
    """Before the test and after it."""
    done = run(
        """
        import asyncio
        import pytest

        @pytest.fixture
        async def before():
            await asyncio.Event().wait()

        @pytest.fixture
        async def after():
            yield 1
            await asyncio.Event().wait()

        @pytest.mark.timeout(4)
        async def test_before(before):
            pass

        @pytest.mark.timeout(4)
        async def test_after(after):
            assert after == 1

        async def test_next():
            pass
        """
    )
    assert done.returncode == 1
    assert "2 passed, 2 errors" in done.stdout
    for line, name in ((7, "before"), (12, "after")):
        assert f"at test_it.py:{line}, in {name}: await asyncio.Event().wait()" in done.stdout


def test_what_a_lost_event_loop_leaves_is_blamed_on_its_test(run: Run) -> None:
    """A test that does not even let itself be cancelled loses its loop under a server; the next test passes."""
    done = run(
        """
        import asyncio, contextlib
        import grpc.aio
        import pytest

        @pytest.mark.timeout(4)
        async def test_stays():
            server = grpc.aio.server()
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                await channel.channel_ready()
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()
                await asyncio.Event().wait()

        async def test_next():
            async with grpc.aio.insecure_channel("127.0.0.1:1"):
                pass
        """
    )
    assert done.returncode == 1
    assert "1 failed, 1 passed" in done.stdout
    assert "test_it.py::test_stays left behind:\nRuntimeError: Event loop is closed" in done.stdout
