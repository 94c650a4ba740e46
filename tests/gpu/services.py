"""All three services with the encoder on a device: the demo model answers about its example files."""

from __future__ import annotations

import asyncio

import grpc

from demo.pictures import CONVERSATIONS
from demo.served import converse
from tests.gpu.report import Report
from triptych import Client, launcher
from triptych.bundles import demo_bundle
from triptych_cli.demo import open_example
from vlm.v1 import tensor_pb2, vision_pb2, vision_pb2_grpc

# What each service imports besides: named here so that what is missing is known before anything starts.
import decoder_service.service  # isort: skip  # noqa: F401
import gateway.service  # isort: skip  # noqa: F401
import vision_service.service  # isort: skip  # noqa: F401


def check_services(device: str, report: Report) -> None:
    """Ask about the example files, with the encoder in float32 and in the type that `auto` takes.

    Args:
        device: cuda, cuda:N or cpu.
        report: Told of each check.
    """
    for dtype in ("float32", "auto"):
        asyncio.run(_serve(device, dtype, report))


async def _serve(device: str, dtype: str, report: Report) -> None:
    environment = {"VISION_DEVICE": device, "VISION_DTYPE": dtype}
    system = launcher.System(launcher.Plan(demo_bundle(), grpc_port=0, http_port=0, environment=environment))
    try:
        await system.start()
        await asyncio.to_thread(_ask, system, device, dtype, report)
    finally:
        await system.stop()


def _ask(system: launcher.System, device: str, dtype: str, report: Report) -> None:
    with grpc.insecure_channel(system.vision[0].address) as channel:
        info = vision_pb2_grpc.VisionEncoderStub(channel).GetEncoder(vision_pb2.GetEncoderRequest())  # type: ignore[no-untyped-call]
    used = tensor_pb2.DataType.Name(info.dtype).removeprefix("DATA_TYPE_").lower()
    right = info.device.startswith(device.partition(":")[0]) and dtype in ("auto", used)
    report.check(f"services, {dtype}: the vision service computes on {info.device} in {used}", right)
    with Client(system.addresses.grpc) as client:
        said = []
        for conversation in CONVERSATIONS:
            questions, expected = zip(*conversation.turns, strict=True)
            said.append(converse(client, map(open_example, conversation.files), questions))
            about = " and ".join(conversation.files)
            report.check(f"services, {dtype}: {about} is answered rightly", said[-1] == list(expected), said[-1][-1])
        files = [open_example(name) for name in CONVERSATIONS[1].files]
        (other,) = converse(client, files, [CONVERSATIONS[0].turns[0][0]])
    control = f"services, {dtype}: another picture is answered otherwise (negative control)"
    report.check(control, other != said[0][0], other)
