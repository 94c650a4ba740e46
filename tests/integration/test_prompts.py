"""Raw prompts, tokens and several answers through all three services, over both doors, held against transformers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import pytest
import torch

import exporter
import triptych
from tests.checkpoints import make_checkpoint
from tests.pictures import noise, png
from tests.reference import Inputs, Reference
from tests.system import triptych_system
from vlm.v1 import chat_pb2, gateway_pb2, gateway_pb2_grpc, media_pb2

TOKENS = 10
STORY = "Once upon a time there was a cat that looked at the sea, and the sea looked back at the cat."
SPECIAL = "<|im_start|>user\nHi<|im_end|>\n"
PICTURE = png(noise(160, 128, 11))


@dataclass(frozen=True)
class Doors:
    """A served model, and the same in transformers."""

    reference: Reference
    address: str
    stub: gateway_pb2_grpc.GatewayStub
    http: httpx.Client

    def events(self, request: gateway_pb2.ChatRequest) -> list[chat_pb2.ChatEvent]:
        """What is answered over gRPC."""
        return list(self.stub.Chat(request, timeout=60))

    def post(self, path: str, **body: Any) -> Any:
        """What is answered over HTTP."""
        response = self.http.post(path, json=body)
        assert response.status_code == 200, response.text
        return response.json()

    def ids(self, text: str) -> list[int]:
        """The tokens of a text, control tokens among them."""
        ids: list[int] = self.reference.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def greedy(self, ids: list[int]) -> list[int]:
        """How transformers goes on."""
        prompt = torch.tensor([ids])
        return self.reference.generate(Inputs(prompt, torch.zeros_like(prompt), {}), TOKENS)


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    """A small model in fp32."""
    folder = tmp_path_factory.mktemp("prompts")
    checkpoint = make_checkpoint(folder / "checkpoint")
    bundle = exporter.export(checkpoint, folder / "bundle", precision="fp32", progress=False)
    with (
        triptych_system(bundle.root) as address,
        grpc.insecure_channel(address) as channel,
        httpx.Client(base_url=address.http, timeout=60, trust_env=False) as http,
    ):
        yield Doors(Reference(checkpoint), address, gateway_pb2_grpc.GatewayStub(channel), http)


def tokens_of(events: list[chat_pb2.ChatEvent], choice: int = 0) -> list[int]:
    """The tokens of an answer."""
    return [token for event in events if event.choice == choice for token in event.delta.token_ids]


def options(**more: Any) -> chat_pb2.GenerationOptions:
    """Greedy, short, and with the prompt's tokens told."""
    return chat_pb2.GenerationOptions(
        **{"max_tokens": TOKENS, "return_prompt_token_ids": True, "repetition_penalty": 1.0, **more}
    )


def test_a_raw_prompt_is_gone_on_with_as_transformers_does(doors: Doors) -> None:
    """The prompt is the tokenizer's ids and nothing else, as text and as ids; the answer is transformers'."""
    ids = doors.ids(STORY)
    expected = doors.greedy(ids)
    for prompt in (chat_pb2.Prompt(text=STORY), chat_pb2.Prompt(token_ids=chat_pb2.TokenIds(values=ids))):
        events = doors.events(gateway_pb2.ChatRequest(prompt=prompt, generation=options()))
        assert list(events[0].started.prompt_token_ids) == ids
        assert tokens_of(events) == expected
    text = doors.reference.tokenizer.decode(expected, skip_special_tokens=True)
    body = doors.post("/v1/completions", prompt=[STORY, ids], max_tokens=TOKENS, repetition_penalty=1.0)
    assert [choice["text"] for choice in body["choices"]] == [text] * 2
    assert body["usage"]["prompt_tokens"] == 2 * len(ids)


def test_the_python_client_takes_raw_prompts_and_several_answers(doors: Doors) -> None:
    """Greedy answers to text and to ids are transformers', and a count is of the same tokens."""
    ids = doors.ids(STORY)
    with triptych.Client(doors.address) as client:
        for prompt in (triptych.Prompt(STORY), triptych.Prompt(ids)):
            answers = client.answers(prompt, n=2, max_tokens=TOKENS, repetition_penalty=1.0)
            assert [list(answer.token_ids) for answer in answers] == [doors.greedy(ids)] * 2
            assert client.count_tokens(prompt) == len(ids)


def test_control_tokens_are_parsed_where_it_is_asked_for(doors: Doors) -> None:
    """Otherwise their names are text, over both doors."""
    parsed, plain = (
        doors.post("/tokenize", prompt=SPECIAL, return_token_strs=True, **more)
        for more in ({"parse_special": True}, {})
    )
    assert parsed["tokens"] == doors.ids(SPECIAL)
    assert parsed["token_strs"][0] == "<|im_start|>"
    assert not set(plain["tokens"]) & set(doors.reference.tokenizer.added_tokens_decoder)
    assert plain["count"] == len(plain["tokens"]) > parsed["count"]
    for each in (parsed, plain):
        assert doors.post("/detokenize", tokens=each["tokens"]) == {"prompt": SPECIAL}
    counted = doors.stub.CountTokens(gateway_pb2.CountTokensRequest(prompt=chat_pb2.Prompt(text=SPECIAL)))
    assert counted.prompt_tokens == plain["count"]
    answer = doors.stub.Detokenize(chat_pb2.DetokenizeRequest(token_ids=parsed["tokens"]))
    assert answer.text == SPECIAL


def test_a_placeholder_in_a_raw_prompt_is_refused(doors: Doors) -> None:
    """There is no medium for it: by its name, and the server goes on."""
    refused = doors.http.post("/v1/completions", json={"prompt": "a<|image_pad|>", "parse_special": True})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")
    assert doors.http.post("/v1/completions", json={"prompt": "a<|image_pad|>", "max_tokens": 1}).status_code == 200


def picture_chat(**more: Any) -> gateway_pb2.ChatRequest:
    """A question about a picture."""
    parts = [chat_pb2.Part(image=media_pb2.Media(data=PICTURE)), chat_pb2.Part(text="Describe.")]
    message = chat_pb2.Message(role=chat_pb2.ROLE_USER, parts=parts)
    return gateway_pb2.ChatRequest(messages=[message], generation=options(**more))


def test_several_answers_to_one_prompt(doors: Doors) -> None:
    """Greedy ones are equal; drawn ones are those of the seeds that follow; the prompt is computed once."""
    inputs = doors.reference.inputs([("user", [PICTURE, "Describe."])])
    events = doors.events(picture_chat(n=3))
    expected = doors.reference.generate(inputs, TOKENS)
    assert [tokens_of(events, choice) for choice in range(3)] == [expected] * 3
    ends = {event.choice: event.finished.usage for event in events if event.WhichOneof("event") == "finished"}
    assert sorted(ends) == [0, 1, 2]
    assert [ends[choice].cached_tokens for choice in (1, 2)] == [ends[0].prompt_tokens - 1] * 2

    drawn = doors.events(picture_chat(n=2, temperature=1.5, top_k=0, top_p=1.0, seed=7))
    alone = [tokens_of(doors.events(picture_chat(temperature=1.5, top_k=0, top_p=1.0, seed=seed))) for seed in (7, 8)]
    assert [tokens_of(drawn, choice) for choice in (0, 1)] == alone
    assert alone[0] != alone[1]


def test_several_answers_over_http(doors: Doors) -> None:
    """More than there are slots of the engine: each in its choice."""
    body = doors.post(
        "/v1/chat/completions", messages=[{"role": "user", "content": STORY}], n=8, max_tokens=4, ignore_eos=True
    )
    texts = {choice["message"]["content"] for choice in body["choices"]}
    assert ([choice["index"] for choice in body["choices"]], len(texts)) == (list(range(8)), 1)
    assert body["usage"]["completion_tokens"] == 8 * 4
