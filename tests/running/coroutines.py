"""Coroutines of tests and fixtures are cancelled when they take too long, and say what they waited for.

pytest-timeout cannot end them well: what it raises ends the event loop under the servers and channels of the test. A
task that is cancelled leaves its contexts one by one, while the loop still runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from tests.running.limits import seconds_of

SHARE = 0.5
"""Of the time that pytest-timeout gives: the rest is for leaving."""


@contextlib.asynccontextmanager
async def bounded(seconds: float, root: Path) -> AsyncIterator[None]:
    """Cancel what is inside when the time is over, and fail with the line at which it waited.

    Args:
        seconds: From now; 0 for no bound.
        root: The lines of files below it are told.
    """
    limit = asyncio.timeout(seconds or None)
    try:
        async with limit:
            yield
    except TimeoutError as error:
        if not limit.expired():
            raise
        pytest.fail(f"waited for more than {seconds:g} s {_place(error.__cause__, root)}")


def _place(cancelled: BaseException | None, root: Path) -> str:
    """The innermost line of the tests in a traceback."""
    frames = traceback.extract_tb(cancelled.__traceback__ if cancelled else None)
    here = Path(__file__)
    for frame in reversed(frames):
        path = Path(frame.filename)
        if path.is_relative_to(root) and path != here:
            return f"at {path.relative_to(root)}:{frame.lineno}, in {frame.name}: {frame.line}"
    return "at an unknown place"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bound the tests that are coroutines."""
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            item.obj = _bound_coroutine(item.obj, seconds_of(item) * SHARE, item.config.rootpath)


def _bound_coroutine(function: Callable[..., Any], seconds: float, root: Path) -> Callable[..., Any]:
    @functools.wraps(function)
    async def run(*args: Any, **kwargs: Any) -> Any:
        async with bounded(seconds, root):
            return await function(*args, **kwargs)

    return run


def _bound_generator(function: Callable[..., Any], seconds: float, root: Path) -> Callable[..., Any]:
    @functools.wraps(function)
    async def run(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        generator = function(*args, **kwargs)
        async with bounded(seconds, root):
            value = await anext(generator)
        yield value
        async with bounded(seconds, root):
            async for _ in generator:
                raise AssertionError(f"{function.__name__} yields more than once")

    return run


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """Bound the fixtures that are coroutines, before pytest-asyncio runs them."""
    function = fixturedef.func
    seconds, root = seconds_of(request._pyfuncitem) * SHARE, request.config.rootpath
    if inspect.iscoroutinefunction(function):
        bounded_function = _bound_coroutine(function, seconds, root)
    elif inspect.isasyncgenfunction(function):
        bounded_function = _bound_generator(function, seconds, root)
    else:
        return (yield)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fixturedef, "func", bounded_function)
        return (yield)
