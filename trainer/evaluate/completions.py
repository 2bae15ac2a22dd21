"""Generates completions of prompts, streamed in pieces (`contract/completions.py`).

Otherwise it follows OpenAI's reference of /v1/completions: the first n choices belong to the first
prompt, a stop sequence is not part of the text, tokens that are not whole characters are shown as
bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from trainer.contract.completions import CompletionOrder, Done, Logprobs, Prompt, TextPiece
from trainer.data.tokenizer import Tokenizer
from trainer.evaluate import decoding, network
from trainer.evaluate.kvcache import Cache
from trainer.evaluate.network import Network
from trainer.evaluate.text_stream import Score, TextStream, token_score
from trainer.evaluate.token_sampling import Rules

PROMPT_TOKENS = 512  # tokens forwarded at once, before other orders get a turn
ECHOED_TOKENS = 128  # tokens per piece


class Unusable(Exception):
    """An order that this model cannot serve. param: the field at fault."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


def complete(
    net: Network, tokenizer: Tokenizer, order: CompletionOrder
) -> Iterator[TextPiece | Done | None]:
    """Pieces of the answer to an order; None while no text can be released yet.

    Raises Unusable before the first piece.
    """
    if max(order.logit_bias, default=0) >= tokenizer.vocab_size:
        raise Unusable(_beyond(max(order.logit_bias), tokenizer), "logit_bias")
    prompts = [_ids(net, tokenizer, order, prompt) for prompt in order.prompts]
    drawn = 0
    for number, ids in enumerate(prompts):
        read = _Forwarded(Cache(net, len(ids) + order.max_tokens), ids)
        yield from read.all(order)
        for k in range(order.n):
            cache = read.cache.copy() if k + 1 < order.n else read.cache
            choice = _Choice(number * order.n + k, tokenizer, order, cache, order.seed + k)
            yield from choice.write(read, is_text=isinstance(order.prompts[number], str))
            drawn += choice.num_drawn
    yield Done(prompt_tokens=sum(map(len, prompts)), completion_tokens=drawn)


def _ids(net: Network, tokenizer: Tokenizer, order: CompletionOrder, prompt: Prompt) -> list[int]:
    if isinstance(prompt, str):
        ids = [tokenizer.bos_id, *tokenizer.encode_ordinary(prompt)]
    else:
        ids = list(prompt)
    if max(ids) >= tokenizer.vocab_size:
        raise Unusable(_beyond(max(ids), tokenizer), "prompt")
    longest = network.LONGEST_FACTOR * net.shape.sequence_len
    if len(ids) + order.max_tokens > longest:
        raise Unusable(
            f"the prompt has {len(ids):,} tokens and max_tokens is {order.max_tokens:,}; together "
            f"they may be {longest:,}, {network.LONGEST_FACTOR} times the length the model was "
            "trained on",
            "prompt",
        )
    return ids


def _beyond(token: int, tokenizer: Tokenizer) -> str:
    return f"there is no token {token}: the vocabulary has {tokenizer.vocab_size:,}"


class _Forwarded:
    """Prefill of a prompt: its KV cache, the logits after it, and its tokens' scores on request."""

    def __init__(self, cache: Cache, ids: Sequence[int]) -> None:
        self.cache, self.ids = cache, list(ids)
        self.logits_V: Tensor
        self.scores: list[Score | None] = [None] * len(ids)

    def all(self, order: CompletionOrder) -> Iterator[None]:
        """Forward the whole prompt, in chunks; yields after each."""
        is_scored = order.echo and order.logprobs is not None
        for start in range(0, len(self.ids), PROMPT_TOKENS):
            some = self.ids[start : start + PROMPT_TOKENS]
            if is_scored:
                self._score(start, some, order.logprobs or 0)
            else:
                self.logits_V = self.cache.extend(some)
            yield None

    def _score(self, start: int, some: list[int], top: int) -> None:
        """Score the next tokens by the logits after each token."""
        for at, logits_V in enumerate(self.cache.score(some), start + 1):
            if at < len(self.ids):
                self.scores[at] = token_score(logits_V, self.ids[at], top)
            self.logits_V = logits_V


class _Choice:
    """One choice: a continuation being generated."""

    def __init__(
        self, index: int, tokenizer: Tokenizer, order: CompletionOrder, cache: Cache, seed: int
    ) -> None:
        self.index, self.tokenizer, self.order, self.cache = index, tokenizer, order, cache
        self.text = TextStream(tokenizer, order.stop, with_scores=order.logprobs is not None)
        self.randomness = torch.Generator().manual_seed(seed % 2**63)
        self.num_drawn = 0

    def write(self, read: _Forwarded, *, is_text: bool) -> Iterator[TextPiece | None]:
        """Generate the pieces, the last with a finish_reason."""
        if self.order.echo:
            for at in range(int(is_text), len(read.ids)):
                self.text.add(read.ids[at], read.scores[at])
                if at % ECHOED_TOKENS == 0:
                    yield self._piece(*self.text.take())
        self.text.begin()
        reason: Literal["length", "stop"] = "length"
        for token in self._draw(read.logits_V):
            if token is None or self.text.is_stopped:
                reason = "stop"
                break
            yield self._piece(*self.text.take())
        text, logprobs = self.text.finish()
        yield TextPiece(index=self.index, text=text, logprobs=logprobs, finish_reason=reason)

    def _draw(self, logits_V: Tensor) -> Iterator[int | None]:
        """Draw tokens and add them to the text, one by one; None if another document begins.

        The token that begins it has no text, but its probability is reported.
        """
        order = self.order
        drawn = decoding.draw(
            self.cache, logits_V, _rules(order), order.max_tokens, self.randomness
        )
        for token, logits_V in drawn:
            top = order.logprobs
            score = None if top is None else token_score(logits_V, token, top)
            self.num_drawn += 1
            if token == self.tokenizer.bos_id:
                self.text.close(token, score)
                yield None
                return
            self.text.add(token, score)
            yield token

    def _piece(self, text: str, logprobs: Logprobs | None) -> TextPiece | None:
        return TextPiece(index=self.index, text=text, logprobs=logprobs) if text else None


def _rules(order: CompletionOrder) -> Rules:
    return Rules(
        order.temperature,
        order.top_k,
        order.top_p,
        order.presence_penalty,
        order.frequency_penalty,
        order.logit_bias,
    )
