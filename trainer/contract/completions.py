"""Protocol between daemon and serving job: lines of JSON over a Unix socket.

A connection is one Order, then Pieces in the order of their choices, then Done; or Refused at any
point. Nothing of it is durable. Hanging up ends the work.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter

SERVE_SOCKET = "serve.sock"  # in the job's directory
MAX_ORDER_BYTES = 8 << 20  # one line: a body of the API at its largest, escaped
MAX_REPLY_BYTES = 4 << 20
MAX_CHOICES = 128
MAX_PROMPT_CHARACTERS = 1 << 20
MAX_TOKENS = 32_768

TokenId = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
TokenKey = Annotated[int, Field(ge=0, lt=2**31)]  # a key of JSON, which is text
Bias = Annotated[float, Field(ge=-100, le=100, strict=True)]
PromptString = Annotated[str, StringConstraints(max_length=MAX_PROMPT_CHARACTERS)]
PromptTokens = Annotated[
    list[TokenId], Field(min_length=1, max_length=MAX_PROMPT_CHARACTERS, fail_fast=True)
]
Prompt = PromptString | PromptTokens


class SocketMessage(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class CompletionOrder(SocketMessage):
    """n choices for each prompt, with the weights of one checkpoint.

    A text begins a document: <|bos|> is put before it. Ids are taken as they are. Choice i of a
    prompt draws with seed + i. logprobs: number of most likely tokens reported at each place
    beside the one taken; None reports none.
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
    """Of each token: its text, natural log of its probability, the likeliest instead of it, and
    where its text begins, in characters from the beginning of the choice's text.

    Probabilities are the model's own, before temperature, penalties and cuts. The first of given
    ids has nothing before it, and no probability.
    """

    tokens: list[str] = []
    """Tokens of the text."""
    token_logprobs: list[float | None] = []
    """Log-probability of each token."""
    top_logprobs: list[dict[str, float] | None] = []
    """Log-probabilities of the most likely tokens at each place."""
    text_offset: list[int] = []
    """Offset of each token in the text, in characters."""


class TextPiece(SocketMessage):
    """More of a choice's text; finish_reason with its last one."""

    kind: Literal["piece"] = "piece"
    index: int
    text: str
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class Done(SocketMessage):
    """Every choice is complete. Prompts count once, whatever n is."""

    kind: Literal["done"] = "done"
    prompt_tokens: int
    completion_tokens: int


class OrderRefused(SocketMessage):
    """The order cannot be meant (param: the field that is wrong) or failed (param: None)."""

    kind: Literal["refused"] = "refused"
    message: str
    param: str | None = None


AnyReply = Annotated[TextPiece | Done | OrderRefused, Field(discriminator="kind")]
REPLY: TypeAdapter[TextPiece | Done | OrderRefused] = TypeAdapter(AnyReply)
