"""The tokenizer: nanochat's ids, our file, training, and files that mean harm."""

from __future__ import annotations

import json
import os
import pickle
import pickletools
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from trainer.contract.recipe import RECIPES
from trainer.data import inert_pickle
from trainer.data import tokenizer as tokenizers
from trainer.data.errors import DataError

TEXTS = [
    "def add(a, b):\n    return a + b\n",
    "Ünïcödé 你好 🌍",
    "x = 1234567 # it's",
    "",
    " \n\t ",
]


@pytest.fixture(scope="module")
def reference(fixture_dir: Path) -> dict:
    return json.loads((fixture_dir / "reference.json").read_text())


@pytest.fixture(scope="module")
def tokenizer(fixture_dir: Path) -> tokenizers.Tokenizer:
    return tokenizers.from_nanochat(fixture_dir / "tokenizer")


def test_ids_are_nanochats(tokenizer, reference) -> None:
    for text, ids in reference["sample_encode"].items():
        assert tokenizer.encode_ordinary(text) == ids
        assert tokenizer.decode(ids) == text
    assert tokenizer.bos_id == reference["prompt_ids"][0] == 759
    prompt = tokenizer.decode(reference["prompt_ids"][1:])
    assert tokenizer.encode_array(prompt, bos=True).tolist() == reference["prompt_ids"]
    assert tokenizer.vocab_size == 768


def test_special_tokens_in_a_text_are_text(tokenizer) -> None:
    ids = tokenizer.encode_ordinary("<|bos|>hello<|user_end|>")
    assert max(ids) < tokenizer.bos_id
    assert tokenizer.decode(ids) == "<|bos|>hello<|user_end|>"


def test_token_bytes_count_bytes(tokenizer) -> None:
    assert tokenizer.token_bytes[759:].tolist() == [0] * 9
    for text in TEXTS:
        ids = tokenizer.encode_ordinary(text)
        assert tokenizer.token_bytes[ids].sum() == len(text.encode())


def test_our_file_gives_the_same_tokenizer(tokenizer, tmp_path) -> None:
    tokenizer.save(tmp_path)
    again = tokenizers.load_any(tmp_path)
    assert again.sha256 == tokenizer.sha256
    assert again.special_tokens == tokenizers.SPECIAL_TOKENS
    assert all(again.encode_ordinary(t) == tokenizer.encode_ordinary(t) for t in TEXTS)
    # the name is the sha256 of the file itself
    from trainer.data.fingerprints import full

    assert full(tmp_path / tokenizers.FILE_NAME) == tokenizer.sha256


def test_batches_equal_singles_on_any_number_of_threads(tokenizer) -> None:
    texts = TEXTS * 20
    for threads in (1, 2, 5):
        batch = tokenizer.encode_batch(texts, bos=True, threads=threads)
        for ids, text in zip(batch, texts, strict=True):
            assert np.array_equal(ids, tokenizer.encode_array(text, bos=True))
            assert ids.dtype == np.uint16


def test_a_million_spaces(tokenizer, capfd) -> None:
    """The regex engine gives up on those; the text is encoded in pieces."""
    text = "x" + " " * 1_000_000
    assert tokenizer.decode(tokenizer.encode_ordinary(text)) == text


def test_export_is_nanochats_own_file(tokenizer, fixture_dir, tmp_path) -> None:
    tokenizers.to_nanochat(tokenizer, tmp_path)
    theirs = pickle.loads((tmp_path / "tokenizer.pkl").read_bytes())  # noqa: S301 our own
    assert all(theirs.encode_ordinary(t) == tokenizer.encode_ordinary(t) for t in TEXTS)
    assert tokenizers.from_nanochat(tmp_path).sha256 == tokenizer.sha256


def test_training_is_repeatable_and_has_the_nine_special_tokens() -> None:
    texts = [f"the quick brown fox {n} jumps over {n * 7} lazy dogs, " * 3 for n in range(400)]
    first, second = (tokenizers.train(iter(texts), 300) for _ in range(2))
    assert first.sha256 == second.sha256
    assert first.vocab_size == 300
    assert first.special_tokens == tokenizers.SPECIAL_TOKENS
    assert first.bos_id == 291
    assert first.decode(first.encode_ordinary(texts[3])) == texts[3]


def test_a_recipe_may_have_fewer_special_tokens() -> None:
    texts = [f"the quick brown fox {n} jumps over {n * 7} lazy dogs, " * 3 for n in range(400)]
    five = tokenizers.train(iter(texts), 300, RECIPES["2026-09"].special_tokens)
    assert five.special_tokens == tokenizers.SPECIAL_TOKENS[:5]
    assert (five.vocab_size, five.bos_id) == (300, 295)


def test_training_reads_the_beginning_of_each_document() -> None:
    head = "ab " * 3334  # 10,002 characters
    one = tokenizers.train([head[:10_000]], 268)
    two = tokenizers.train([head[:10_000] + "zzzz qqqq" * 999], 268)
    assert one.sha256 == two.sha256


def test_too_little_text_for_the_vocabulary() -> None:
    with pytest.raises(DataError, match=r"too small for a vocabulary of 5,000") as caught:
        tokenizers.train(["hello world"], 5000)
    assert caught.value.code == "corpus_too_small"


# --- files that mean harm ------------------------------------------------------------------------

CANARY = "canary-that-must-not-exist"


class _Calls:
    def __init__(self, function, *arguments) -> None:
        self._call = (function, arguments)

    def __reduce__(self):
        return self._call


def _global(module: str, name: str, protocol: int = 4) -> bytes:
    if protocol < 4:
        return b"\x80\x02c" + f"{module}\n{name}\n".encode()
    texts = b"".join(b"\x8c" + bytes([len(t)]) + t.encode() for t in (module, name))
    return b"\x80\x04" + texts + b"\x93"


def _pickled_with(state: object) -> bytes:
    """An Encoding pickled with this state."""
    body = pickle.dumps(state, protocol=4)[2:-1]
    # without the frame, whose length would no longer be right
    if body[:1] == b"\x95":
        body = body[9:]
    return _global("tiktoken.core", "Encoding") + b")\x81" + body + b"b."


def _good_state() -> dict:
    return {
        "name": "x",
        "pat_str": r"\s+|\S+",
        "mergeable_ranks": {bytes([byte]): byte for byte in range(256)},
        "special_tokens": {"<|bos|>": 256},
    }


def _hostile() -> dict[str, bytes]:
    touch = f"open({CANARY!r}, 'w')"
    good = _good_state()
    changed = {
        "ranks with a gap": {"mergeable_ranks": {bytes([b]): b + (b > 9) for b in range(256)}},
        "a rank that is a text": {"mergeable_ranks": {bytes([b]): str(b) for b in range(256)}},
        "a token that is a text": {"mergeable_ranks": {str(b): b for b in range(256)}},
        "a missing byte": {"mergeable_ranks": {bytes([b]): b for b in range(255)}},
        "no bos": {"special_tokens": {"<|other|>": 256}},
        "special token before the merges": {"special_tokens": {"<|bos|>": 3}},
        "special tokens missing": {"special_tokens": None},
        "a broken pattern": {"pat_str": "((("},
        "a pattern of a megabyte": {"pat_str": "a" * (1 << 20)},
        "a pattern of bytes": {"pat_str": b"\\s+"},
    }
    crafted = {
        "eval": pickle.dumps(_Calls(eval, touch)),
        "exec": pickle.dumps(_Calls(exec, touch)),
        "system": pickle.dumps(_Calls(os.system, f"touch {CANARY}")),
        "open": pickle.dumps(_Calls(open, CANARY, "w")),
        "protocol 0": pickle.dumps(_Calls(eval, touch), protocol=0),
        "protocol 2": pickle.dumps(_Calls(eval, touch), protocol=2),
        "call within the state": _pickled_with({"name": _Calls(eval, touch)}),
        "INST": f"(S{touch!r}\ni__builtin__\neval\n.".encode(),
        "OBJ": b"(c__builtin__\neval\nS" + repr(touch).encode() + b"\no.",
        "GLOBAL of another name": _global("os", "system", protocol=2) + b".",
        "STACK_GLOBAL of another name": _global("os", "system") + b".",
        "dotted name": _global("tiktoken.core", "Encoding.__init__.__globals__") + b".",
        "another name of tiktoken": _global("tiktoken", "get_encoding") + b".",
        "a name by reference": _pickled_with("o200k_base"),  # the real class would fetch it
        "EXT1": b"\x80\x02\x82\x01.",
        "PERSID": b"Pid\n.",
        "BINPERSID": b"\x80\x02K\x01Q.",
        "not an Encoding": pickle.dumps({"mergeable_ranks": {}}),
        "two slots": _global("tiktoken.core", "Encoding") + b")\x81}}\x86b.",
        "empty": b"",
        "one byte": b"\x80",
        "text": b"hello",
        "truncated": pickle.dumps(good)[:-40],
        "a text longer than the file": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"x.",
        "bytes longer than the file": b"\x80\x04B" + struct.pack("<I", 1 << 31) + b"x.",
        "a memo of gigabytes": b"\x80\x04K\x01r" + struct.pack("<I", (1 << 32) - 1) + b".",
        "a giant bytearray": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
        "a frame longer than the file": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b".",
        "nested": b"\x80\x04" + b"}" * 100_000 + b".",
        "underflow": b"\x80\x04b.",
        "a giant number": b"\x80\x04\x8b" + struct.pack("<i", 1 << 30) + b".",
        "negative protocol": b"\x80\xff.",
        "unhashable key": b"\x80\x04}(}K\x01u.",
        "laughs": b"\x80\x04" + b"]" + b"2a" * 40 + b".",
        "many encodings": _global("tiktoken.core", "Encoding") + b"\x94" + b")\x81h\x00" * 9 + b".",
        "many dictionaries": b"\x80\x04" + b"}" * 1000 + b".",
        "built twice": _pickled_with(good)[:-1] + b"}b.",
    }
    crafted.update({k: _pickled_with({**good, **v}) for k, v in changed.items()})
    return crafted


HOSTILE = _hostile()


@pytest.mark.parametrize("name", HOSTILE)
def test_f52_a_hostile_tokenizer_is_refused(name, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokenizer.pkl").write_bytes(HOSTILE[name])
    with pytest.raises(DataError) as caught:
        tokenizers.from_nanochat(tmp_path)
    assert caught.value.code == "tokenizer_refused"
    assert "tokenizer.pkl" in caught.value.message
    assert not (tmp_path / CANARY).exists()


def test_the_canary_sings_for_a_free_unpickler(tmp_path, monkeypatch) -> None:
    """The crafted files do what they say when read carelessly: the test above can fail."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(HOSTILE["eval"]).close()  # noqa: S301 that is the point
    assert (tmp_path / CANARY).exists()


def test_the_good_state_is_read(tmp_path) -> None:
    """What the changed states differ from is fine."""
    (tmp_path / "tokenizer.pkl").write_bytes(_pickled_with(_good_state()))
    assert tokenizers.from_nanochat(tmp_path).vocab_size == 257


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol_of_python_3_is_read(protocol, fixture_dir, tmp_path) -> None:
    theirs = pickle.loads((fixture_dir / "tokenizer" / "tokenizer.pkl").read_bytes())  # noqa: S301
    content = pickle.dumps(theirs, protocol=protocol)
    if protocol == 2:  # bytes are written as a call of codecs.encode there: no longer plain data
        assert any(opcode.name == "REDUCE" for opcode, _, _ in pickletools.genops(content))
        return
    state = inert_pickle.read_encoding(content, "tokenizer.pkl")
    assert len(state["mergeable_ranks"]) == 759


def test_f53_a_sparse_file_is_refused_unread(tmp_path) -> None:
    with (tmp_path / "tokenizer.pkl").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match="larger than"):
        tokenizers.from_nanochat(tmp_path)


def _token_bytes(case: str, path: Path) -> None:
    import torch

    if case == "pickle":
        path.write_bytes(pickle.dumps(_Calls(open, CANARY, "w")))
    elif case == "calls inside":
        torch.save({"x": _Calls(open, CANARY, "w")}, path)
    elif case == "other lengths":
        torch.save(torch.ones(768, dtype=torch.int32), path)
    elif case == "other shape":
        torch.save(torch.ones(700, dtype=torch.int32), path)
    elif case == "expanded":
        torch.save(torch.ones(1, dtype=torch.int32).expand(1 << 34), path)
    elif case == "compressed":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", bytes(50_000_000))
    elif case == "garbage":
        path.write_bytes(b"PK\x03\x04 and nothing else")


@pytest.mark.parametrize(
    "case",
    ["pickle", "calls inside", "other lengths", "other shape", "expanded", "compressed", "garbage"],
)
def test_f52_hostile_token_bytes(case, fixture_dir, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(fixture_dir / "tokenizer" / "tokenizer.pkl", tmp_path / "tokenizer.pkl")
    _token_bytes(case, tmp_path / "token_bytes.pt")
    with pytest.raises(DataError, match=r"token_bytes\.pt") as caught:
        tokenizers.from_nanochat(tmp_path)
    assert caught.value.code == "tokenizer_refused"
    assert not (tmp_path / CANARY).exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b"[" * 100_000,
        b'{"format": "traind-tokenizer", "version": 2}',
        b'{"format": "traind-tokenizer", "version": 1, "pattern": 3, "tokens": [], '
        b'"special_tokens": []}',
        b'{"format": "traind-tokenizer", "version": 1, "pattern": "x", "tokens": ["!!"], '
        b'"special_tokens": ["<|bos|>"]}',
        b"\xff\xfe",
    ],
)
def test_a_damaged_file_of_ours_is_refused(content, tmp_path) -> None:
    (tmp_path / tokenizers.FILE_NAME).write_bytes(content)
    with pytest.raises(DataError) as caught:
        tokenizers.load(tmp_path)
    assert caught.value.code == "tokenizer_refused"


def test_no_tokenizer_there(tmp_path) -> None:
    with pytest.raises(DataError, match="neither") as caught:
        tokenizers.load_any(tmp_path)
    assert caught.value.code == "tokenizer_not_found"
