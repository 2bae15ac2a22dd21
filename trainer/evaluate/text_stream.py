"""Streams text while its tokens are sampled: whole characters, stop sequences, scores."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from trainer.contract.completions import Logprobs


class TokenSpelling(Protocol):
    """Interface of the tokenizer for streams, as trainer.data.tokenizer.Tokenizer has it."""

    def bytes_of(self, token: int) -> bytes: ...


@dataclass(frozen=True)
class Score:
    """Log-probabilities (nats) of a token at its position, and of the likeliest ones and itself."""

    logprob: float
    top: dict[int, float]


def token_score(logits_V: Tensor, token: int, top: int) -> Score:
    """The score of `token`, with the `top` likeliest ones."""
    logprobs_V = logits_V.float().log_softmax(dim=-1)
    best = logprobs_V.topk(min(top, len(logprobs_V)))
    likeliest = dict(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    logprob = float(logprobs_V[token])
    return Score(logprob, likeliest | {token: logprob})


class TextStream:
    """Releases text once it is whole characters and cannot belong to a stop sequence.

    A character may take several tokens; a stop sequence may begin anywhere after `begin`, and the
    text ends before it.
    """

    def __init__(
        self, tokenizer: TokenSpelling, stops: Sequence[str], *, with_scores: bool
    ) -> None:
        self.tokenizer, self.stops, self.with_scores = tokenizer, stops, with_scores
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.whole, self.released = "", 0
        self.start: int | None = None  # offset from which stop sequences are searched
        self.end: int | None = None  # offset of a found stop sequence
        self.waiting: deque[tuple[int, int, Score | None]] = deque()  # (offset, token, score)

    @property
    def is_stopped(self) -> bool:
        return self.end is not None

    def begin(self) -> None:
        """Mark the text added so far as the prompt: released unchanged, stop sequences or not."""
        self.start = len(self.whole)

    def add(self, token: int, score: Score | None = None) -> None:
        """Add a sampled token to the text, with its score."""
        spelled = self.tokenizer.bytes_of(token)
        if self.decoder.getstate()[0] and not _continues(spelled):
            self.whole += self.decoder.decode(b"", final=True)  # not part of this token
        if self.with_scores:
            self.waiting.append((len(self.whole), token, score))
        self.whole += self.decoder.decode(spelled)
        if self.start is not None:
            found = [self.whole.find(stop, max(self.released, self.start)) for stop in self.stops]
            self.end = min((at for at in found if at >= 0), default=None)

    def close(self, token: int, score: Score | None) -> None:
        """Add the token that ends the document: at the end of the text, without text."""
        self.whole += self.decoder.decode(b"", final=True)
        if self.with_scores:
            self.waiting.append((len(self.whole), token, score))

    def take(self) -> tuple[str, Logprobs | None]:
        """Take the text that can be released now."""
        held = max((_overlap(self.whole, stop) for stop in self.stops), default=0)
        return self._emit(max(self.start or 0, len(self.whole) - held))

    def finish(self) -> tuple[str, Logprobs | None]:
        """Take the rest; incomplete characters become U+FFFD."""
        if self.end is not None:
            return self._emit(self.end)
        self.whole += self.decoder.decode(b"", final=True)
        return self._emit(len(self.whole), is_all=True)

    def _emit(self, end: int, *, is_all: bool = False) -> tuple[str, Logprobs | None]:
        text, self.released = self.whole[self.released : end], max(self.released, end)
        if not self.with_scores:
            return text, None
        logprobs = Logprobs()
        while self.waiting and (is_all or self.waiting[0][0] < end):
            self._emit_score(logprobs, *self.waiting.popleft())
        return text, logprobs

    def _emit_score(self, to: Logprobs, offset: int, token: int, score: Score | None) -> None:
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
    """True if the bytes continue an incomplete UTF-8 character."""
    return spelled[0] & 0xC0 == 0x80


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of `stop`."""
    return next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)
