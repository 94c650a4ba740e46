"""Forms of a target, and DNS names whose addresses change."""

from __future__ import annotations

import pytest

from gateway.replicas.discovery import Discovery, Target, TargetError, parse_target, resolve_host


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:50061", Target(("127.0.0.1:50061",))),
        ("vision:50061", Target(("vision:50061",))),
        ("a:1, b:2,a:1", Target(("a:1", "b:2"))),
        ("ipv4:10.0.0.1:1,10.0.0.2:1", Target(("10.0.0.1:1", "10.0.0.2:1"))),
        ("ipv6:[::1]:1,[::2]:1", Target(("[::1]:1", "[::2]:1"))),
        ("[::1]:50061", Target(("[::1]:50061",))),
        ("dns:///vision:50061", Target(host="vision", port=50061)),
        ("dns:vision.example:50061", Target(host="vision.example", port=50061)),
    ],
)
def test_forms_of_a_target(text: str, expected: Target) -> None:
    """An address, lists of them, and names."""
    assert parse_target(text) == expected


@pytest.mark.parametrize("text", ["", "vision", "vision:http", "::1:50061", "a:1,,b:2", "unix:/tmp/a", "dns:///vision"])
def test_other_forms_are_refused(text: str) -> None:
    """With a sentence that shows the forms."""
    with pytest.raises(TargetError, match="write host:port"):
        parse_target(text)


async def test_a_name_is_read_each_time() -> None:
    """The addresses are those of now, each once; a name that cannot be read, or has none, says nothing of them."""
    answers: list[list[str] | OSError] = [["b:1", "a:1", "a:1"], OSError("no name server"), [], ["c:1"]]

    async def resolve(host: str, port: int) -> list[str]:
        assert (host, port) == ("vision", 50061)
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    discovery = Discovery(parse_target("dns:///vision:50061"), resolve)
    assert [await discovery.addresses() for _ in range(4)] == [("a:1", "b:1"), None, None, ("c:1",)]


async def test_the_systems_resolver() -> None:
    """Addresses come with the port; an unknown name is an OSError."""
    assert await resolve_host("127.0.0.1", 7) == ["127.0.0.1:7"]
    assert await resolve_host("::1", 7) == ["[::1]:7"]
    with pytest.raises(OSError, match=r".+"):
        await resolve_host("no-such-name.invalid", 7)
