"""The spec: defaults, presets, and errors that say what would be right."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from trainer.contract.spec import PRESETS, resolve


def test_a_name_is_enough():
    spec = resolve({"name": "demo"})
    assert spec.preset == "demo"
    assert spec.data.source == "builtin"
    assert spec.start


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_complete(preset):
    assert resolve({"name": "x", "preset": preset}).preset == preset


def test_a_whole_number_may_be_written_as_a_float_and_a_float_as_a_whole_number():
    body = {"name": "x", "horizon": {"tokens": 1e9}, "optimizer": {"matrix_lr": 1}}
    spec = resolve(body)
    assert (spec.horizon.tokens, spec.optimizer.matrix_lr) == (10**9, 1.0)
    assert resolve({"name": "x", "numerics": {"compile": "auto"}}).numerics.compile == "auto"


def test_a_horizon_replaces_the_presets_whole():
    spec = resolve({"name": "x", "horizon": {"tokens": 10**6}})
    assert spec.horizon.steps is None
    assert spec.horizon.tokens == 10**6


def test_another_source_does_not_inherit_the_presets_place(tmp_path):
    body = {"name": "x", "preset": "rtx4070-d12", "data": {"source": "text", "path": "/t"}}
    data = resolve(body).data
    assert (data.name, data.max_shards) == (None, None)


@pytest.mark.parametrize(
    ("body", "where", "said"),
    [
        ({"name": "x", "colour": 1}, ("colour",), "Extra inputs"),
        ({"name": "x", "model": {"deepth": 1}}, ("model", "deepth"), "Extra inputs"),
        ({"name": "x", "model": {"depth": 0}}, ("model", "depth"), "greater than or equal to 1"),
        ({"name": "run_1"}, ("name",), "must not begin with 'run_'"),
        ({"name": "../x"}, ("name",), "pattern"),
        ({}, ("name",), "required"),
        ({"name": "x", "preset": "none"}, ("preset",), "unknown preset"),
        ({"name": "x", "horizon": {}}, ("horizon",), "exactly one of"),
        ({"name": "x", "horizon": {"steps": 1, "tokens": 9}}, ("horizon",), "given: steps, tokens"),
        ({"name": "x", "data": {"source": "text"}}, ("data",), "needs a path"),
        ({"name": "x", "batch": {"tokens": 100}}, (), "not a multiple of"),
        ({"name": "x", "batch": {"tokens": 128 * 9, "device_batch_size": 2}}, (), "would be"),
        ({"name": "x", "model": {"depth": "4"}}, ("model", "depth"), "a whole number, not text"),
        (
            {"name": "x", "model": {"depth": True}},
            ("model", "depth"),
            "a whole number, not a boolean",
        ),
        (
            {"name": "x", "batch": {"device_batch_size": "8"}},
            ("batch", "device_batch_size"),
            "a whole number or auto, not text",
        ),
        ({"name": "x", "optimizer": {"matrix_lr": "1e-3"}}, ("optimizer",), "a number, not text"),
        ({"name": "x", "start": 1}, ("start",), "true or false"),
        ({"name": "x", "start": 1.0}, ("start",), "true or false"),
        (
            {"name": "x", "numerics": {"compile": "yes"}},
            ("numerics", "compile"),
            "true or false or auto",
        ),
        ({"name": "x", "optimizer": {"matrix_lr": float("nan")}}, ("optimizer", "matrix_lr"), ""),
        ({"name": "x", "checkpoint": {"keep_last": 1}}, ("checkpoint", "keep_last"), "2"),
        ({"name": "x", "metadata": {str(i): "" for i in range(17)}}, ("metadata",), "16"),
    ],
)
def test_what_is_wrong_is_named(body, where, said):
    with pytest.raises(ValidationError) as caught:
        resolve(body)
    first = caught.value.errors()[0]
    assert first["loc"][: len(where)] == where
    assert said in first["msg"]


@pytest.mark.parametrize("precision", ["fp8", "fp16", "fp32"])
def test_our_kernels_are_for_bf16(precision: str) -> None:
    body = {"name": "x", "numerics": {"kernels": "triton"}, "horizon": {"steps": 1}}
    assert resolve(body).numerics.kernels == "triton"
    with pytest.raises(ValidationError, match=f"with precision {precision} there") as caught:
        resolve({**body, "numerics": {"kernels": "triton", "precision": precision}})
    assert caught.value.errors()[0].get("ctx", {})["at"] == ("numerics", "kernels")


@pytest.mark.parametrize("name", ["head_dim", "sequence_len"])
def test_fp8_wants_sizes_that_its_tiles_fit(name: str) -> None:
    body = {"name": "x", "numerics": {"precision": "fp8"}, "horizon": {"steps": 1}}
    assert resolve(body).numerics.precision == "fp8"
    with pytest.raises(ValidationError, match=rf"tiles of 16: model\.{name} 24") as caught:
        resolve({**body, "model": {name: 24}, "batch": {"tokens": 24 * 128 * 16}})
    assert caught.value.errors()[0].get("ctx", {})["at"] == ("numerics", "precision")


PACKED = {"source": "nanochat_packed", "path": "/d"}


def test_packed_shards_have_the_tokenizer_beside_them() -> None:
    data = resolve({"name": "x", "data": PACKED}).data
    assert data.tokenizer.path == "/d/tokenizer"
    assert data.tokenizer.train is None
    assert type(data).model_validate_json(data.model_dump_json()) == data
    other = {**PACKED, "tokenizer": {"path": "/t"}, "num_shards": 3}
    assert resolve({"name": "x", "data": other}).data.tokenizer.path == "/t"


@pytest.mark.parametrize(
    ("data", "field", "said"),
    [
        ({**PACKED, "max_shards": 2}, "max_shards", "takes num_shards"),
        ({**PACKED, "packing": "lossless"}, "packing", "its rows are packed"),
        ({**PACKED, "streams": 2}, "streams", "its rows are packed"),
        ({**PACKED, "tokenizer": {"train": True}}, "tokenizer", "cannot be trained anew"),
        ({"source": "parquet", "path": "/d", "num_shards": 2}, "num_shards", "max_shards limits"),
    ],
)
def test_what_does_not_go_with_packed_shards(data, field: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said) as caught:
        resolve({"name": "x", "data": data})
    assert caught.value.errors()[0].get("ctx", {})["at"][0] == field


def test_packed_shards_need_a_path() -> None:
    with pytest.raises(ValidationError, match="needs a path"):
        resolve({"name": "x", "data": {"source": "nanochat_packed"}})


def test_streams_share_a_step_equally() -> None:
    body = {"name": "x", "batch": {"tokens": 128 * 6, "device_batch_size": 2}}
    assert resolve({**body, "data": {"streams": 3}}).data.streams == 3
    with pytest.raises(ValidationError, match=r"6 rows .* equally by 4 streams") as caught:
        resolve({**body, "data": {"streams": 4}})
    assert caught.value.errors()[0].get("ctx", {})["at"] == ("data", "streams")
