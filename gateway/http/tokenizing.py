"""`POST /tokenize` and `POST /detokenize`, as vLLM has them."""

from __future__ import annotations

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from gateway.errors import renamed
from gateway.http.endpoint import Endpoint, Work
from gateway.http.schema import DetokenizeRequest, TokenizeRequest
from gateway.http.translate import JsonNames, parse_chat, to_chat, validated
from gateway.http.unserved import ignored_fields
from gateway.keys.access import Admitted
from gateway.retry import Deadline
from serving.errors import ServiceError, invalid
from vlm.v1 import chat_pb2, gateway_pb2

_Read = tuple[TokenizeRequest, gateway_pb2.CountTokensRequest]


class Tokenize(Endpoint[_Read]):
    """The tokens of a conversation with its media, or of a prompt. Nothing is encoded or generated."""

    def read(self, body: bytes, request_id: str) -> tuple[_Read, list[str]]:
        """See `Endpoint`."""
        request = parse_chat(body, TokenizeRequest)
        ignored = ignored_fields(request)
        if bool(request.messages) == (request.prompt is not None):
            raise invalid("messages", "or prompt: send one of them")
        chat = to_chat(request, request_id)
        counting = gateway_pb2.CountTokensRequest(
            model=chat.model,
            messages=chat.messages,
            media=chat.media,
            tools=[] if chat.tool_choice.none else chat.tools,
            return_token_ids=True,
            return_token_texts=bool(request.return_token_strs),
            request_id=request_id,
        )
        if chat.HasField("enable_thinking"):
            counting.enable_thinking = chat.enable_thinking
        if request.prompt is not None:
            counting.prompt.text = request.prompt
            counting.prompt.parse_special = bool(request.parse_special)
        return (request, counting), ignored

    def work(self, read: _Read, deadline: Deadline, admitted: Admitted) -> Work:
        """See `Endpoint`."""
        request, counting = read

        async def send(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                counted = await self._conductor.count_tokens(
                    counting, request_id=counting.request_id, deadline=deadline, tenant=admitted.tenant
                )
            except ServiceError as error:
                raise renamed(error, JsonNames(request)) from error
            tokens = {
                "count": counted.prompt_tokens,
                "max_model_len": counted.context_length,
                "tokens": list(counted.token_ids),
                "token_strs": list(counted.token_texts) if request.return_token_strs else None,
            }
            await JSONResponse(tokens)(scope, receive, send)

        return send


class Detokenize(Endpoint[DetokenizeRequest]):
    """The text of tokens."""

    def read(self, body: bytes, request_id: str) -> tuple[DetokenizeRequest, list[str]]:
        """See `Endpoint`."""
        request = validated(body, DetokenizeRequest)
        return request, ignored_fields(request)

    def work(self, read: DetokenizeRequest, deadline: Deadline, admitted: Admitted) -> Work:
        """See `Endpoint`."""
        question = chat_pb2.DetokenizeRequest(model=read.model or "", token_ids=read.tokens)

        async def send(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                answer = await self._conductor.detokenize(question, deadline=deadline)
            except ServiceError as error:
                raise renamed(error, lambda path: path.replace("token_ids", "tokens", 1)) from error
            await JSONResponse({"prompt": answer.text})(scope, receive, send)

        return send
