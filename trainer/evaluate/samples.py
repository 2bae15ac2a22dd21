"""Generates text from a prompt, token by token, with a KV cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from trainer.evaluate import network
from trainer.evaluate.kvcache import Cache
from trainer.evaluate.network import Network
from trainer.evaluate.token_sampling import Rules, choose
from trainer.evaluate.undisturbed import undisturbed
from trainer.model.gpt import GPT

REPLACEMENT = "�"  # what decodes to this at the end may be a character not yet complete
MAX_HELD_TOKENS = 8


class SampleTokenizer(Protocol):
    """What is needed of trainer.data.tokenizer.Tokenizer."""

    @property
    def bos_id(self) -> int: ...
    def encode_ordinary(self, text: str) -> list[int]: ...
    def decode(self, ids: Iterable[int]) -> str: ...


@dataclass(frozen=True)
class Continuation:
    """text: the continuation alone. ended: 'document' when the model began another document.

    dropped_tokens: from the beginning of a prompt too long to be forwarded.
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
    """Continue `prompt` by up to max_tokens tokens; None when told to stop, asked at each token.

    temperature 0 takes the likeliest token. on_token gets text as it becomes whole characters.
    """
    ids, dropped = _prompt_ids(model, tokenizer, prompt, max_tokens)
    drawn: list[int] = []
    ended: Literal["length", "document"] = "length"
    pieces = _Pieces(tokenizer, on_token)
    for token in stream(model, ids, max_tokens, temperature=temperature, top_k=top_k, seed=seed):
        if token == tokenizer.bos_id:
            ended = "document"
            break
        drawn.append(token)
        pieces.add(token)
        if should_stop is not None and should_stop():
            return None
    pieces.finish()
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
    """Tokens after `ids`, one by one. Its own generator: nobody else's random numbers are used."""
    rules, randomness = Rules(temperature, top_k), torch.Generator().manual_seed(seed)
    with undisturbed(model):
        cache = Cache(Network(model), len(ids) + max_tokens)
    following = list(ids)
    for _ in range(max_tokens):
        with undisturbed(model):
            token = choose(cache.extend(following), rules, {}, randomness)
        yield token
        following = [token]


def _prompt_ids(
    model: GPT, tokenizer: SampleTokenizer, prompt: str, max_tokens: int
) -> tuple[list[int], int]:
    """(<|bos|> and the prompt, tokens dropped): what may be forwarded, with room to continue."""
    ids = [tokenizer.bos_id, *tokenizer.encode_ordinary(prompt)]
    room = max(1, network.LONGEST_FACTOR * model.shape.sequence_len - max_tokens)
    return ids[-room:], max(0, len(ids) - room)


class _Pieces:
    """Text for the listener: a character of several tokens is held back until it is whole."""

    def __init__(self, tokenizer: SampleTokenizer, listener: Callable[[str], None] | None) -> None:
        self.tokenizer, self.listener, self.held = tokenizer, listener, []

    def add(self, token: int) -> None:
        self.held.append(token)
        if self.listener is None:
            return
        text = self.tokenizer.decode(self.held)
        if not text.endswith(REPLACEMENT) or len(self.held) >= MAX_HELD_TOKENS:
            self._send(text)

    def finish(self) -> None:
        if self.listener is not None and self.held:
            self._send(self.tokenizer.decode(self.held))

    def _send(self, text: str) -> None:
        self.held = []
        if self.listener is not None:
            self.listener(text)
