"""The small parts: names in errors, waits, things done together, settings."""

from __future__ import annotations

import asyncio
import contextvars
import subprocess
import sys
from functools import partial

import pytest
from pydantic import ValidationError

from gateway.errors import Tier, lost, of_decoder, of_medium
from gateway.retry import Backoff, Deadline
from gateway.settings import GatewaySettings
from serving.calls import accept_request_id
from serving.errors import Code, Reason, ServiceError, Violation, invalid, too_large, unavailable
from serving.tasks import gather_or_cancel
from vlm.v1 import media_pb2

PATH = "messages[0].parts[1].image"


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("data", PATH),
        ("kind", PATH),
        ("options.fps", "media.fps"),
        ("options.max_pixels", f"{PATH}.options.max_pixels"),
        ("options", "media"),
        ("request_id", "request_id"),
    ],
)
def test_fields_of_the_vision_service_get_the_clients_names(field: str, expected: str) -> None:
    """The path is replaced in the violation and in the message."""
    error = of_medium(invalid(field, "is wrong"), PATH, media_pb2.MediaOptions(max_pixels=5))
    assert error.violations == (Violation(expected, "is wrong"),)
    assert error.message == f"{expected}: is wrong"


def test_a_message_is_made_from_the_violations() -> None:
    """Every field at fault is in it by its new name; a word that happens to be a field's name is left as it is."""
    error = ServiceError(
        Code.INVALID_ARGUMENT,
        "R",
        "data: the data are truncated; options.fps: is 0",
        violations=(Violation("data", "the data are truncated"), Violation("options.fps", "is 0")),
        retry_after=2.0,
        metadata={"limit": "1"},
    )
    mapped = of_medium(error, PATH, media_pb2.MediaOptions())
    assert mapped.message == f"{PATH}: the data are truncated; media.fps: is 0"
    assert (mapped.code, mapped.reason, mapped.metadata) == (Code.INVALID_ARGUMENT, "R", {"limit": "1"})
    assert mapped.retry_after == 2.0


def test_a_message_without_violations_is_kept() -> None:
    """There is nothing to make it anew from."""
    error = ServiceError(Code.INTERNAL, "R", "the data are gone")
    assert of_medium(error, PATH, media_pb2.MediaOptions()).message == "the data are gone"


def test_fields_of_the_features_get_the_clients_names() -> None:
    """A feature map that is too large is too large a medium; one that is wrong is not the client's fault."""
    paths = ["messages[0].parts[0].image", PATH]
    error = of_decoder(too_large("features[1]", "has 9 bytes", reason=Reason.FEATURES_TOO_LARGE, limit=8), paths)
    assert (error.reason, error.violations[0].field) == ("FEATURES_TOO_LARGE", PATH)
    assert error.message == f"{PATH}: has 9 bytes"
    error = of_decoder(invalid("features[1].shape", "is [2, 2] and must be [2, 3]"), paths)
    assert (error.code, error.reason, error.violations) == (Code.INTERNAL, "DECODER_PROTOCOL", ())
    own = invalid("generation.top_p", "is over 1")
    assert of_decoder(own, paths) is own


def test_addresses_inside_the_house_are_not_told() -> None:
    """The text of gRPC of a failed connection stays in the log; a service's own message is passed on."""
    raw = ServiceError(Code.UNAVAILABLE, "UNAVAILABLE", "failed to connect to ipv4:10.0.0.7:50061")
    assert "10.0.0.7" not in lost(Tier.VISION, raw, attempts=3).message
    own = unavailable(Reason.ENGINE_NOT_READY, "the engine is being started again")
    assert "the engine is being started again" in lost(Tier.VISION, own, attempts=1).message


def test_waits_grow_to_a_limit() -> None:
    """Each wait is longer than the one before, up to the longest, and none is outside its jitter."""
    backoff = Backoff(first=1.0, factor=2.0, longest=3.0, jitter=0.1)
    for attempt, mean in ((1, 1.0), (2, 2.0), (3, 3.0), (9, 3.0)):
        assert mean * 0.9 <= backoff.seconds(attempt) <= mean * 1.1


async def test_a_wait_does_not_outlast_the_deadline() -> None:
    """A pause that is longer than the time left ends in DEADLINE_EXCEEDED at the deadline."""
    with pytest.raises(ServiceError, match=r"within its 0.01 seconds") as caught:
        await asyncio.wait_for(Deadline(0.01).pause(3600), timeout=30)
    assert caught.value.code is Code.DEADLINE_EXCEEDED


async def test_one_failure_cancels_the_others_and_is_raised_alone() -> None:
    """Of things done together the failing one's exception comes out, after the others were cancelled."""
    cancelled = asyncio.Event()

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def fails() -> None:
        raise KeyError("alone")

    with pytest.raises(KeyError, match="alone"):
        await gather_or_cancel([endless(), fails()])
    assert cancelled.is_set()


def test_request_ids() -> None:
    """The client's own id is kept; without one there is a new one each time; an unprintable or long one is refused."""
    accept = partial(contextvars.copy_context().run, accept_request_id)  # as in a call, with a context of its own
    assert accept("my-id 7") == "my-id 7"
    assert accept("") != accept("")
    for bad in ("é", "line\n", "x" * 129):
        with pytest.raises(ServiceError) as caught:
            accept(bad)
        assert caught.value.violations[0].field == "request_id"
    assert len(accept("x" * 128)) == 128


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """`GATEWAY_*` is read, `off` closes the HTTP door, and an empty variable counts as not set."""
    for name, value in (("HTTP_PORT", "off"), ("VISION", "dns:///vision:50061"), ("MAX_MESSAGES", "")):
        monkeypatch.setenv(f"GATEWAY_{name}", value)
    settings = GatewaySettings()
    assert (settings.http_port, settings.vision, settings.max_messages) == (None, "dns:///vision:50061", 1024)
    assert settings.limits.messages == 1024
    assert settings.policy.encode_attempts == settings.encode_attempts


@pytest.mark.parametrize(
    "bad",
    [
        {"max_image_bytes": 1 << 27},
        {"default_deadline_seconds": 10, "max_deadline_seconds": 5},
        {"encode_attempts": 0},
        {"http_port": 70000},
        {"no_such_setting": 1},
    ],
)
def test_settings_that_make_no_sense_are_refused(bad: dict[str, object]) -> None:
    """Limits that contradict each other and unknown names are errors, not surprises."""
    with pytest.raises(ValidationError):
        GatewaySettings(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["--encode-attempts", "0"], "encode_attempts"), (["--no-such-flag"], "no-such-flag")],
)
def test_wrong_usage_exits_with_2(arguments: list[str], says: str) -> None:
    """Wrong flags end in exit code 2 and a line that names them."""
    done = subprocess.run(
        [sys.executable, "-m", "gateway", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_no_model_library_is_imported() -> None:
    """The gateway needs none of the libraries that hold models, and none of the other services."""
    code = (
        "import sys, gateway.__main__; "
        "print([n for n in sys.modules if n.split('.')[0] in "
        "('torch', 'onnxruntime', 'onnxruntime_genai', 'transformers', 'tokenizers', 'PIL', 'av', "
        "'vision_service', 'decoder_service', 'exporter', 'triptych')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
