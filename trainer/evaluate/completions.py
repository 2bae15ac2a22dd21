"""Generates completions of prompts, streamed in pieces (`contract/completions.py`).

Where an order is silent, it means what OpenAI's reference of /v1/completions says: the first n
choices belong to the first prompt, a stop sequence is not part of the text, tokens that are no
whole characters are named by their bytes.
"""

from __future__ import annotations

import codecs
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from trainer.contract.completions import CompletionOrder, Done, Logprobs, Prompt, TextPiece
from trainer.data.tokenizer import Tokenizer
from trainer.evaluate import network
from trainer.evaluate.kvcache import Cache
from trainer.evaluate.network import Network
from trainer.evaluate.token_sampling import Rules, choose

PROMPT_TOKENS = 512  # forwarded at once, before others get a turn
ECHOED_TOKENS = 128  # told at once


class Unusable(Exception):
    """An order that this model cannot follow. param: the field of it that is wrong."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


def complete(
    net: Network, tokenizer: Tokenizer, order: CompletionOrder
) -> Iterator[TextPiece | Done | None]:
    """Everything that is said about an order; None where a while passes without a word.

    Raises Unusable before the first word.
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


@dataclass(frozen=True)
class _Score:
    """Of a token where it stands: its log-probability; the likeliest's, with its own again."""

    logprob: float
    top: dict[int, float]


class _Forwarded:
    """A prompt being read: its cache, the logits after it, and scores of its tokens if wanted."""

    def __init__(self, cache: Cache, ids: Sequence[int]) -> None:
        self.cache, self.ids = cache, list(ids)
        self.logits_V: Tensor
        self.scores: list[_Score | None] = [None] * len(ids)

    def all(self, order: CompletionOrder) -> Iterator[None]:
        """Read to the end, some tokens for each value."""
        is_scored = order.echo and order.logprobs is not None
        for start in range(0, len(self.ids), PROMPT_TOKENS):
            some = self.ids[start : start + PROMPT_TOKENS]
            if is_scored:
                self._score(start, some, order.logprobs or 0)
            else:
                self.logits_V = self.cache.extend(some)
            yield None

    def _score(self, start: int, some: list[int], top: int) -> None:
        """The logits after a token say how likely the next one was."""
        for at, logits_V in enumerate(self.cache.score(some), start + 1):
            if at < len(self.ids):
                self.scores[at] = _score(logits_V, self.ids[at], top)
            self.logits_V = logits_V


def _score(logits_V: Tensor, token: int, top: int) -> _Score:
    logprobs_V = logits_V.float().log_softmax(dim=-1)
    best = logprobs_V.topk(min(top, len(logprobs_V)))
    likeliest = dict(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    logprob = float(logprobs_V[token])
    return _Score(logprob, likeliest | {token: logprob})


class _Choice:
    """One continuation being written."""

    def __init__(
        self, index: int, tokenizer: Tokenizer, order: CompletionOrder, cache: Cache, seed: int
    ) -> None:
        self.index, self.tokenizer, self.order, self.cache = index, tokenizer, order, cache
        self.text = _Text(tokenizer, order.stop, with_scores=order.logprobs is not None)
        self.randomness = torch.Generator().manual_seed(seed % 2**63)
        self.num_drawn = 0

    def write(self, read: _Forwarded, *, is_text: bool) -> Iterator[TextPiece | None]:
        """Pieces, the last with a finish_reason."""
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
        """Tokens as they are added to the text, one by one; None where another document begins.

        That it would begin has a probability too, which is told, and no text.
        """
        rules, drawn, token = _rules(self.order), Counter[int](), None
        for _ in range(self.order.max_tokens):
            if token is not None:
                logits_V = self.cache.extend([token])
            token = choose(logits_V, rules, drawn, self.randomness)
            top = self.order.logprobs
            score = None if top is None else _score(logits_V, token, top)
            self.num_drawn += 1
            if token == self.tokenizer.bos_id:
                self.text.close(token, score)
                yield None
                return
            drawn[token] += 1
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


class _Text:
    """The text of a choice, told once it is whole characters and cannot belong to a stop sequence.

    A character may be several tokens; a stop sequence may begin anywhere after `begin`, and cuts
    the text before it.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], *, with_scores: bool) -> None:
        self.tokenizer, self.stops, self.with_scores = tokenizer, stops, with_scores
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.whole, self.told = "", 0
        self.start: int | None = None  # where stop sequences are looked for
        self.end: int | None = None  # where a stop sequence begins
        self.waiting: deque[tuple[int, int, _Score | None]] = deque()  # (offset, token, score)

    @property
    def is_stopped(self) -> bool:
        return self.end is not None

    def begin(self) -> None:
        """What was added so far is the prompt: it is told as it is, whatever it says."""
        self.start = len(self.whole)

    def add(self, token: int, score: _Score | None) -> None:
        spelled = self.tokenizer.bytes_of(token)
        if self.decoder.getstate()[0] and not _continues(spelled):
            self.whole += self.decoder.decode(b"", final=True)  # so that it is not this token's
        if self.with_scores:
            self.waiting.append((len(self.whole), token, score))
        self.whole += self.decoder.decode(spelled)
        if self.start is not None:
            found = [self.whole.find(stop, max(self.told, self.start)) for stop in self.stops]
            self.end = min((at for at in found if at >= 0), default=None)

    def close(self, token: int, score: _Score | None) -> None:
        """The token that ends the document: at the end of the text, and none of it."""
        self.whole += self.decoder.decode(b"", final=True)
        if self.with_scores:
            self.waiting.append((len(self.whole), token, score))

    def take(self) -> tuple[str, Logprobs | None]:
        """What may be told now and was not."""
        held = max((_overlap(self.whole, stop) for stop in self.stops), default=0)
        return self._emit(max(self.start or 0, len(self.whole) - held))

    def finish(self) -> tuple[str, Logprobs | None]:
        """All the rest; what never became a character is U+FFFD."""
        if self.end is not None:
            return self._emit(self.end)
        self.whole += self.decoder.decode(b"", final=True)
        return self._emit(len(self.whole), is_all=True)

    def _emit(self, end: int, *, is_all: bool = False) -> tuple[str, Logprobs | None]:
        text, self.told = self.whole[self.told : end], max(self.told, end)
        if not self.with_scores:
            return text, None
        logprobs = Logprobs()
        while self.waiting and (is_all or self.waiting[0][0] < end):
            self._emit_score(logprobs, *self.waiting.popleft())
        return text, logprobs

    def _emit_score(self, to: Logprobs, offset: int, token: int, score: _Score | None) -> None:
        to.tokens.append(self._name(token))
        to.text_offset.append(offset)
        to.token_logprobs.append(score.logprob if score else None)
        top = {self._name(t): logprob for t, logprob in score.top.items()} if score else None
        to.top_logprobs.append(top)

    def _name(self, token: int) -> str:
        spelled = self.tokenizer.bytes_of(token)
        try:
            return spelled.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)


def _continues(spelled: bytes) -> bool:
    """Whether the bytes continue with a character of UTF-8 that was begun."""
    return spelled[0] & 0xC0 == 0x80


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that `stop` begins with, and is not all of it."""
    return next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)
