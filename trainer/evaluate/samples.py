"""Generates text from a prompt, token by token, with a KV cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from trainer.evaluate import decoding, network
from trainer.evaluate.kvcache import Cache
from trainer.evaluate.network import Network
from trainer.evaluate.text_stream import TextStream
from trainer.evaluate.token_sampling import Rules
from trainer.evaluate.undisturbed import undisturbed
from trainer.model.gpt import GPT


class SampleTokenizer(Protocol):
    """Interface of the tokenizer for samples, as trainer.data.tokenizer.Tokenizer has it."""

    @property
    def bos_id(self) -> int: ...
    def encode_ordinary(self, text: str) -> list[int]: ...
    def decode(self, ids: Iterable[int]) -> str: ...
    def bytes_of(self, token: int) -> bytes: ...


@dataclass(frozen=True)
class Continuation:
    """text: only the continuation. ended: 'document' if the model began another document.

    dropped_tokens: number dropped from the beginning of a prompt that is too long.
    """

    text: str
    tokens: tuple[int, ...]
    ended: Literal["length", "document"]
    dropped_tokens: int = 0


def generate(
    model: GPT,
    tokenizer: SampleTokenizer,
    prompt: str,
    *,
    max_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int = 0,
    on_token: Callable[[str], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Continuation | None:
    """Continue `prompt` by up to max_tokens tokens; None if stopped, checked at each token.

    temperature 0 takes the likeliest token. on_token gets the text in whole characters.
    """
    ids, dropped = _prompt_ids(model, tokenizer, prompt, max_tokens)
    drawn: list[int] = []
    ended: Literal["length", "document"] = "length"
    text = TextStream(tokenizer, stops=(), with_scores=False)

    def send(piece: str) -> None:
        if piece and on_token is not None:
            on_token(piece)

    for token in stream(model, ids, max_tokens, temperature=temperature, top_k=top_k, seed=seed):
        if token == tokenizer.bos_id:
            ended = "document"
            break
        drawn.append(token)
        text.add(token)
        send(text.take()[0])
        if should_stop is not None and should_stop():
            return None
    send(text.finish()[0])
    return Continuation(tokenizer.decode(drawn), tuple(drawn), ended, dropped)


def stream(
    model: GPT,
    ids: Sequence[int],
    max_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int = 0,
) -> Iterator[int]:
    """Generate tokens after `ids`, one by one. Uses its own random generator."""
    with undisturbed(model):
        cache = Cache(Network(model), len(ids) + max_tokens)
        logits_V = cache.extend(list(ids))
    randomness = torch.Generator().manual_seed(seed)
    drawn = decoding.draw(cache, logits_V, Rules(temperature, top_k), max_tokens, randomness)
    while True:
        with undisturbed(model):  # exited while the caller handles a token
            following = next(drawn, None)
        if following is None:
            return
        yield following.token


def _prompt_ids(
    model: GPT, tokenizer: SampleTokenizer, prompt: str, max_tokens: int
) -> tuple[list[int], int]:
    """(<|bos|> and the prompt, number of tokens dropped), cut to leave room to continue."""
    ids = [tokenizer.bos_id, *tokenizer.encode_ordinary(prompt)]
    room = max(1, network.LONGEST_FACTOR * model.shape.sequence_len - max_tokens)
    return ids[-room:], max(0, len(ids) - room)
