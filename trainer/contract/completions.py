"""Protocol between daemon and serving job: lines of JSON over a Unix socket.

A connection carries one CompletionOrder, then TextPieces in the order of their choices, then Done;
or OrderRefused at any point. Nothing is durable. Closing the connection cancels the work.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter

SERVE_SOCKET = "serve.sock"  # in the job's directory
MAX_ORDER_BYTES = 8_000_000  # longest line: the largest request body of the API, escaped
MAX_REPLY_BYTES = 4_000_000
MAX_CHOICES = 128
MAX_PROMPT_CHARACTERS = 1_000_000
MAX_TOKENS = 32_768

TokenId = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
TokenKey = Annotated[int, Field(ge=0, lt=2**31)]  # keys of a JSON object are strings
Bias = Annotated[float, Field(ge=-100, le=100, strict=True)]
PromptString = Annotated[str, StringConstraints(max_length=MAX_PROMPT_CHARACTERS)]
PromptTokens = Annotated[
    list[TokenId], Field(min_length=1, max_length=MAX_PROMPT_CHARACTERS, fail_fast=True)
]
Prompt = PromptString | PromptTokens


class SocketMessage(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class CompletionOrder(SocketMessage):
    """Requests n choices for each prompt, sampled with the weights of one checkpoint.

    A text prompt begins a document: <|bos|> is prepended. Token ids are used unchanged. Choice i
    of a prompt samples with seed + i. logprobs: number of most likely tokens reported at each
    position beside the sampled one; None reports none.
    """

    run_dir: str
    checkpoint: str
    prompts: Annotated[list[Prompt], Field(min_length=1, max_length=MAX_CHOICES)]
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    max_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] = 16
    temperature: Annotated[float, Field(ge=0, le=10)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    logit_bias: dict[TokenKey, Bias] = {}
    stop: list[Annotated[str, StringConstraints(min_length=1)]] = []
    seed: int = 0
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class Logprobs(SocketMessage):
    """Log-probabilities of the tokens of a choice: for each token its text, the natural log of its
    probability, the most likely alternatives, and its offset in the choice's text, in characters.

    Probabilities are the model's own, before temperature, penalties, top-k and top-p. The first of
    given ids has no context, and therefore no probability.
    """

    tokens: list[str] = []
    """Tokens of the text."""
    token_logprobs: list[float | None] = []
    """Log-probability of each token."""
    top_logprobs: list[dict[str, float] | None] = []
    """Log-probabilities of the most likely tokens at each position."""
    text_offset: list[int] = []
    """Offset of each token in the text, in characters."""


class TextPiece(SocketMessage):
    """The next piece of a choice's text; the last piece has the finish_reason."""

    kind: Literal["piece"] = "piece"
    index: int
    text: str
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class Done(SocketMessage):
    """Every choice is complete. The tokens of a prompt count once, whatever n is."""

    kind: Literal["done"] = "done"
    prompt_tokens: int
    completion_tokens: int


class OrderRefused(SocketMessage):
    """The order is invalid (param: the field at fault) or failed (param: None)."""

    kind: Literal["refused"] = "refused"
    message: str
    param: str | None = None


AnyReply = Annotated[TextPiece | Done | OrderRefused, Field(discriminator="kind")]
REPLY: TypeAdapter[TextPiece | Done | OrderRefused] = TypeAdapter(AnyReply)
