"""OpenAI's completion format: request and response models, and their translation.

Unknown keys are errors, as everywhere in this API and in OpenAI's. `null` means the default.
"""

from __future__ import annotations

import secrets
import time
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    StringConstraints,
    model_validator,
)

from server.errors import TraindError
from server.queries.models import MODEL_PATTERN, Model
from trainer.contract import completions as words
from trainer.contract.completions import MAX_CHOICES, MAX_TOKENS, Done, Logprobs, TextPiece
from trainer.contract.spec import Strict, do_not_fit

Stop = Annotated[str, StringConstraints(min_length=1, max_length=1000)]


def _prompts_in(prompt: Any) -> Any:
    if isinstance(prompt, list) and not prompt:
        raise ValueError("the list of prompts is empty")
    return prompt


class StreamOptions(Strict):
    include_usage: bool | None = None
    """Whether the last event carries token counts."""
    include_obfuscation: Literal[False] | None = None
    """Must be false."""


class CompletionRequest(Strict):
    """Body of OpenAI's legacy completions, plus top_k. `user` is accepted and ignored."""

    model: Annotated[str, StringConstraints(pattern=MODEL_PATTERN)]
    prompt: Annotated[
        words.PromptString
        | Annotated[list[words.PromptString], Field(max_length=MAX_CHOICES)]
        | Annotated[
            list[words.TokenId], Field(max_length=words.MAX_PROMPT_CHARACTERS, fail_fast=True)
        ]
        | Annotated[list[words.Prompt], Field(max_length=MAX_CHOICES)],
        AfterValidator(_prompts_in),
    ]
    max_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=10)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Sample only from the most likely tokens whose probabilities sum to this value."""
    top_k: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    """Number of completions per prompt."""
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    """Must equal n if given."""
    stream: bool | None = None
    """Whether to stream the response as server-sent events."""
    stream_options: StreamOptions | None = None
    """Options of the stream."""
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """Number of most likely tokens to return at each position."""
    echo: bool | None = None
    """Whether the completion starts with the prompt."""
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    """Strings that end a completion."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    """Penalty for tokens that occurred before."""
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    """Penalty per earlier occurrence of a token."""
    logit_bias: dict[words.TokenKey, words.Bias] | None = None
    """Bias per token id, added to the logits."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    suffix: Annotated[str, StringConstraints(max_length=0)] | None = None
    """Must be empty."""
    user: Annotated[str, StringConstraints(max_length=1024)] | None = None
    """Accepted and ignored."""

    @property
    def prompts(self) -> list[words.Prompt]:
        """The list of prompts, from any of the four accepted forms."""
        alone = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return [self.prompt] if alone else self.prompt  # type: ignore[list-item,return-value]

    @model_validator(mode="after")
    def _fits(self) -> CompletionRequest:
        n = self.n or 1
        if n * len(self.prompts) > MAX_CHOICES:
            raise do_not_fit(("n",), f"n times the number of prompts must be at most {MAX_CHOICES}")
        if self.best_of not in (None, n):
            raise do_not_fit(
                ("best_of",), "best_of must equal n, since only n choices are generated"
            )
        return self


def order_of(ask: CompletionRequest, model: Model, run_dir: str) -> words.CompletionOrder:
    """The order for the serving job. Without a seed each request draws a random one."""
    given = ask.model_dump(
        exclude_none=True,
        include={"max_tokens", "temperature", "top_k", "logprobs", "echo", "logit_bias", "n"}
        | {"presence_penalty", "frequency_penalty"},
    )
    return words.CompletionOrder.model_validate(
        given
        | {
            "run_dir": run_dir,
            "checkpoint": model.checkpoint,
            "prompts": ask.prompts,
            "top_p": 1.0 if ask.top_p is None else max(ask.top_p, 1e-9),
            "stop": [ask.stop] if isinstance(ask.stop, str) else ask.stop or [],
            "seed": secrets.randbits(31) if ask.seed is None else ask.seed,
        }
    )


class Choice(BaseModel):
    index: int
    text: str
    logprobs: Logprobs | None = None
    """Log-probabilities per token."""
    finish_reason: Literal["stop", "length"] | None = None
    """stop at a stop string or end of text, length at max_tokens."""


class Usage(BaseModel):
    prompt_tokens: int
    """Number of tokens of the prompts."""
    completion_tokens: int
    """Number of generated tokens."""
    total_tokens: int
    """Number of tokens of prompts and completions."""


class Completion(BaseModel):
    """A completion, or one chunk of a streamed one.

    model: always RUN@STEP. system_fingerprint: the checkpoint, whose files never change.
    """

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    """Name of the checkpoint that generated the text."""
    choices: list[Choice]
    """Completions."""
    usage: Usage | None = None
    """Token counts."""


class ModelView(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "traind"
    """Always traind."""


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelView]


def view(model: Model) -> ModelView:
    return ModelView(id=model.id, created=int(model.created_at))


class CompletionBuilder:
    """Builds the response to one request, in chunks or whole."""

    def __init__(self, ask: CompletionRequest, model: Model) -> None:
        self.head: dict[str, Any] = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model.id,
            "system_fingerprint": model.checkpoint,
        }
        self.is_streamed = bool(ask.stream)
        self.has_usage = bool(ask.stream_options and ask.stream_options.include_usage)

    def part(self, piece: TextPiece) -> Completion:
        return Completion(**self.head, choices=[_choice([piece])])

    def last_part(self, done: Done) -> Completion | None:
        """The last chunk: the usage, if requested."""
        return Completion(**self.head, choices=[], usage=_usage(done)) if self.has_usage else None

    def whole(self, pieces: list[TextPiece], done: Done) -> Completion:
        of_choice: dict[int, list[TextPiece]] = {}
        for piece in pieces:
            of_choice.setdefault(piece.index, []).append(piece)
        choices = [_choice(of_choice[index]) for index in sorted(of_choice)]
        return Completion(**self.head, choices=choices, usage=_usage(done))


def _choice(pieces: list[TextPiece]) -> Choice:
    """Merge the pieces of one choice, in order."""
    logprobs = [piece.logprobs for piece in pieces if piece.logprobs is not None]
    return Choice(
        index=pieces[0].index,
        text="".join(piece.text for piece in pieces),
        logprobs=_joined(logprobs) if logprobs else None,
        finish_reason=pieces[-1].finish_reason,
    )


def _joined(parts: list[Logprobs]) -> Logprobs:
    return Logprobs(
        **{
            name: [x for part in parts for x in getattr(part, name)]
            for name in Logprobs.model_fields
        }
    )


def _usage(done: Done) -> Usage:
    total = done.prompt_tokens + done.completion_tokens
    return Usage(
        prompt_tokens=done.prompt_tokens,
        completion_tokens=done.completion_tokens,
        total_tokens=total,
    )


def openai_error(error: TraindError) -> dict[str, Any]:
    """The `error` object that OpenAI's clients expect, added to the problem document."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    where = error.errors[0]["pointer"].lstrip("/?").replace("/", ".") if error.errors else None
    code = "model_not_found" if error.code == "not-found" else error.code
    message = " ".join(filter(None, (error.detail, error.hint)))
    return {"message": message, "type": kind, "param": where or None, "code": code}
