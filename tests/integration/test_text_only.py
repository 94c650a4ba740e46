"""A model that takes text only, served without a vision tier: both doors say so, and refuse media by name."""

from __future__ import annotations

import asyncio
import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import exporter
import triptych
from serving.bundle import Bundle
from serving.server import StartError
from tests.checkpoints import make_qwen3
from tests.pictures import noise, png
from tests.system import Address, triptych_system
from tests.threads import one_thread
from triptych.launcher import Plan, System
from vision_service.service import VisionService
from vision_service.settings import VisionSettings
from vlm.v1 import gateway_pb2, gateway_pb2_grpc

TOKENS = 24
QUESTION = "Why is the other sky blue?"
PICTURE = png(noise(64, 64))


@dataclass(frozen=True)
class TextOnly:
    """A small random Qwen3, as transformers runs it and as it is served."""

    bundle: Bundle
    address: Address
    client: triptych.Client
    model: Any
    tokenizer: Any

    def ids(self, *turns: dict[str, str], **choice: bool) -> list[int]:
        """The prompt by transformers."""
        return list(
            self.tokenizer.apply_chat_template(list(turns), add_generation_prompt=True, return_dict=False, **choice)
        )

    def greedy(self, ids: list[int], answer: list[int]) -> list[int]:
        """The likeliest token by transformers in the place of each of an answer's."""
        with torch.inference_mode():
            logits = self.model(torch.tensor([[*ids, *answer]])).logits[0]
        return [int(token) for token in logits[len(ids) - 1 : -1].argmax(-1)]

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and body of a POST at the HTTP door."""
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"{self.address.http}{path}", json.dumps(body).encode(), headers)  # noqa: S310  # it is http
        try:
            with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310  # as above
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def get(self, path: str) -> Any:
        """The body of a GET at the HTTP door."""
        with urllib.request.urlopen(f"{self.address.http}{path}", timeout=60) as response:  # noqa: S310  # it is http
            return json.load(response)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextOnly]:
    """A small checkpoint."""
    with serving_text(make_qwen3, tmp_path_factory.mktemp("text")) as system:
        yield system


@contextlib.contextmanager
def serving_text(make: Callable[[Path], Path], folder: Path) -> Iterator[TextOnly]:
    """A checkpoint, exported in fp32 and served by a decoder service and a gateway."""
    checkpoint = make(folder / "checkpoint")
    bundle = exporter.export(checkpoint, folder / "bundle", precision="fp32", progress=False)
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with one_thread(), triptych_system(bundle.root) as address, triptych.Client(address) as client:
        yield TextOnly(bundle, address, client, model, AutoTokenizer.from_pretrained(checkpoint))


@pytest.mark.parametrize("thinking", [None, True, False])
def test_two_turns_are_transformers(served: TextOnly, thinking: bool | None) -> None:
    """Ids and 24 greedy tokens, whether the model is to think or not."""
    choice = {} if thinking is None else {"enable_thinking": thinking}
    first = [{"role": "user", "content": QUESTION}]
    turns = [*first, {"role": "assistant", "content": "It is."}, {"role": "user", "content": "Sure?"}]
    for prompt, messages in (
        (first, [triptych.user(QUESTION)]),
        (turns, [triptych.user(QUESTION), triptych.assistant("It is."), triptych.user("Sure?")]),
    ):
        ids = served.ids(*prompt, **choice)
        answer = served.client.answer(
            messages, max_tokens=TOKENS, enable_thinking=thinking, return_prompt_token_ids=True
        )
        assert list(answer.prompt_token_ids) == ids
        tokens = list(answer.token_ids)
        assert len(tokens) == TOKENS or tokens[-1] in served.bundle.tokens.eos
        assert tokens == served.greedy(ids, tokens)
        assert served.client.count_tokens(messages, enable_thinking=thinking) == len(ids)


def test_both_doors_say_what_it_takes(served: TextOnly) -> None:
    """ListModels has neither images nor video; /v1/models has text alone; /healthz has no vision tier."""
    with grpc.insecure_channel(served.address) as channel:
        listed = gateway_pb2_grpc.GatewayStub(channel).ListModels(gateway_pb2.ListModelsRequest(), timeout=30)
    (model,) = listed.models
    assert (model.family, model.images, model.video) == ("qwen3", False, False)
    assert (model.thinks, model.thinking_optional) == (True, True)
    assert served.get("/v1/models")["data"][0]["input_modalities"] == ["text"]
    health = served.get("/healthz")
    assert health["status"] == "serving"
    assert "vision" not in health


@pytest.mark.parametrize("medium", [triptych.Image(PICTURE), triptych.Video(b"anything")])
def test_media_are_refused_by_their_field(served: TextOnly, medium: triptych.Image | triptych.Video) -> None:
    """Before they are looked at: the video is none."""
    kind = type(medium).__name__.lower()
    messages = [triptych.user("Hello"), triptych.assistant("Hi"), triptych.user(QUESTION, medium)]
    for call in (served.client.answer, served.client.count):
        with pytest.raises(triptych.TriptychError) as caught:
            call(messages)  # type: ignore[operator]
        assert (caught.value.code.name, caught.value.reason) == ("INVALID_ARGUMENT", "MEDIA_NOT_SUPPORTED")
        assert [violation.field for violation in caught.value.violations] == [f"messages[2].parts[1].{kind}"]


def test_pictures_are_refused_over_http(served: TextOnly) -> None:
    """With status 400, in a chat and where tokens are counted."""
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, picture]}]}
    for path in ("/v1/chat/completions", "/tokenize"):
        status, answer = served.post(path, body)
        assert status == 400
        assert answer["error"]["code"] == "media_not_supported"
        assert answer["error"]["param"].startswith("messages[0].content[1]")
    status, answer = served.post(
        "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    )
    assert status == 200


def test_names_of_image_tokens_are_text(served: TextOnly) -> None:
    """Nothing in the vocabulary stands for a medium; as ids its tokens are tokens like any other."""
    pad = served.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    answer = served.client.answer(
        [triptych.user("<|vision_start|><|image_pad|>")], max_tokens=2, return_prompt_token_ids=True
    )
    assert pad not in answer.prompt_token_ids
    assert served.client.answer([triptych.user(QUESTION)], max_tokens=3, logit_bias={pad: 100}).token_ids == (pad,) * 3


def test_a_vision_service_does_not_start(served: TextOnly) -> None:
    """It has nothing to encode with."""
    settings = VisionSettings(bundle=served.bundle.root, port=0)
    with pytest.raises(StartError, match="takes text only and has no encoder"):
        asyncio.run(VisionService(settings).start(lambda serving: None))


def test_the_launcher_starts_no_vision_service(served: TextOnly) -> None:
    """Whatever number of replicas is asked for; the gateway is told."""
    system = System(Plan(served.bundle.root, grpc_port=0, http_port=0, vision_replicas=2))
    assert system.vision == []
    command = system.gateway._command
    assert command[command.index("--vision") + 1] == "off"
