"""The faster network equals the one definition, for tokens that stand anywhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.trainer.shapes import KINDS, VOCAB, Kind, batches, trained_model
from trainer.evaluate.kvcache import Cache
from trainer.evaluate.network import Network
from trainer.model import architecture
from trainer.model.architecture import NO_TOKEN, KVCache
from trainer.model.gpt import GPT


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@torch.no_grad()
def test_loose_tokens_in_any_order_equal_the_definition(kind: Kind) -> None:
    """Positions out of order, tokens without one before them, masks that are no window's."""
    model, draw = trained_model(kind), torch.Generator().manual_seed(3)
    count, longest = 90, 3 * kind.sequence_len
    tokens = torch.randint(0, VOCAB, (count,), generator=draw)
    previous = torch.randint(0, VOCAB, (count,), generator=draw)
    previous[::7] = NO_TOKEN
    positions = torch.randint(0, longest, (count,), generator=draw)
    masks = [
        (torch.rand(count, count, generator=draw) < 0.3) | torch.eye(count, dtype=torch.bool)
        for _ in range(model.shape.n_layer)
    ]
    expected = definition(model, tokens, previous, positions, masks)
    wanted = torch.tensor([5, 88, 0, 41])

    def attend(layer: int, q: Tensor, kv: Tensor) -> Tensor:
        mask = masks[layer] if len(q) == count else masks[layer][wanted]
        keys, values = kv[None].unbind(2)
        return architecture.attention(q[None], keys, values, mask)[0]

    found = Network(model).hidden(tokens, previous, positions, longest, attend, wanted)
    torch.testing.assert_close(found, expected[wanted], atol=2e-5, rtol=0)
    assert len(expected.unique(dim=0)) == count


def definition(
    model: GPT, tokens: Tensor, previous: Tensor, positions: Tensor, masks: list[Tensor]
) -> Tensor:
    """`architecture.hidden` of loose tokens, as one row: (N, D)."""

    def attend(mask: Tensor) -> Callable[..., Tensor]:
        return lambda q, k, v: architecture.attention(q, k, v, mask)

    return architecture.hidden(
        tokens[None],
        model.tables,
        architecture.trunk_weights(model.bank.leaves),
        architecture.rotary(positions, model.shape.head_dim, model.compute_dtype),
        [attend(mask) for mask in masks],
        previous[None],
    )[0]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@torch.no_grad()
def test_a_cache_equals_whole_rows_by_the_definition_and_by_the_network(kind: Kind) -> None:
    """In pieces that cross the ends of the windows; two sequences at once by the definition."""
    model, tokens = trained_model(kind), batches(kind, 1)[0][0]
    whole, cache, fast = model(tokens), KVCache(model.shape.windows, 1), Cache(Network(model), 1)
    sizes = [1, 1, 5, tokens.size(1) - 40, 30, 1, 1, 1]
    end = 0
    for piece in tokens.split(sizes, dim=1):
        end += piece.size(1)
        found = model(piece, cache)
        torch.testing.assert_close(found, whole[:, end - piece.size(1) : end], atol=2e-5, rtol=0)
        logits = fast.extend(piece[0].tolist())
        torch.testing.assert_close(logits, whole[0, end - 1], atol=2e-5, rtol=0)
    assert (cache.length, end) == (tokens.size(1), tokens.size(1))


@torch.no_grad()
def test_a_copied_cache_continues_by_itself() -> None:
    kind = KINDS["windows"]
    model, tokens = trained_model(kind), batches(kind, 1)[0][0]
    cache = KVCache(model.shape.windows)
    model(tokens[:, :100], cache)
    other = cache.copy()
    model(tokens[:, 200:300], other)
    expected = model(tokens[:, :140])[:, 100:]
    torch.testing.assert_close(model(tokens[:, 100:140], cache), expected, atol=2e-5, rtol=0)
