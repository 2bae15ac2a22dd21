"""A bundle from a stranger: paths, caps, YAML, tables."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.trainer.evaluate import fixture
from trainer.evaluate import core_bundle
from trainer.evaluate.core_bundle import BundleError, load_bundle


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(fixture.ROOT / "eval_bundle", tmp_path / "bundle"))


def test_the_fixture_as_it_is():
    bundle = fixture.bundle()
    schema = bundle.tasks[2]
    assert [t.label for t in bundle.tasks][:2] == ["stdlib_completion", "stdlib_zero_shot"]
    assert (schema.kind, schema.num_fewshot, schema.delimiter) == ("schema", 1, "\n")
    assert (schema.baseline, len(schema.items)) == (0.5, 24)
    assert bundle.tasks[1].delimiter == " ", "one space is the default"


def test_its_sha256_follows_every_file_that_counts(copy):
    before = load_bundle(copy).sha256
    assert before == fixture.bundle().sha256
    with (copy / "eval_data" / "sub" / "schema.jsonl").open("a") as file:
        file.write("\n")
    assert load_bundle(copy).sha256 != before


@pytest.mark.parametrize(
    "uri", ["../../secret", "/etc/passwd", "a/../../b", "..\\x", "c:x", "a\0b", "..", "."]
)
def test_f49_a_dataset_outside_the_bundle_is_never_opened(copy, uri, monkeypatch):
    (copy.parent / "secret").write_text("{}")
    text = (copy / "core.yaml").read_text().replace("sub/schema.jsonl", repr(uri), 1)
    (copy / "core.yaml").write_text(text)
    with pytest.raises(BundleError):
        load_bundle(copy)


def test_f49_a_symlink_out_of_the_bundle_is_not_followed(copy):
    (copy.parent / "secret").write_text('{"query": "x"}\n')
    (copy / "eval_data" / "mc.jsonl").unlink()
    (copy / "eval_data" / "mc.jsonl").symlink_to(copy.parent / "secret")
    with pytest.raises(BundleError, match="leads out"):
        load_bundle(copy)


YAML = {
    "code": "icl_tasks: !!python/object/apply:os.system ['touch canary']",
    "aliases": "a: &a [x, x]\nb: &b [*a, *a]\nicl_tasks: [*b, *b]",
    "deep": "icl_tasks: " + "[" * 5000,
    "no list": "icl_tasks: 3",
    "empty": "icl_tasks: []",
    "not a mapping": "- 1",
    "another type": "icl_tasks: [{label: a, dataset_uri: b, num_fewshot: [0], icl_task_type: x}]",
    "binary": "\x00\x01",
}


@pytest.mark.parametrize("name", YAML)
def test_f52_hostile_yaml_is_refused_and_runs_nothing(copy, name, monkeypatch):
    monkeypatch.chdir(copy)
    (copy / "core.yaml").write_text(YAML[name])
    with pytest.raises(BundleError):
        load_bundle(copy)
    assert not (copy / "canary").exists()


def test_f53_a_sparse_giant_is_refused_by_its_size(copy):
    os.truncate(copy / "eval_data" / "lm.jsonl", 1 << 40)
    with pytest.raises(BundleError, match="larger than"):
        load_bundle(copy)


@pytest.mark.parametrize(
    "table",
    ["Eval Task,Random baseline\n", "x,y\n1,2\n", "Eval Task,Random baseline\na,100\n", "\xff"],
)
def test_a_table_without_a_usable_baseline_is_refused(copy, table):
    (copy / "eval_meta_data.csv").write_bytes(table.encode("latin-1"))
    with pytest.raises(BundleError):
        load_bundle(copy)


def test_a_line_that_is_not_json_is_an_item_that_cannot_be_scored(copy):
    path = copy / "eval_data" / "lm.jsonl"
    path.write_text("{broken\n\n" + '{"context": "a", "continuation": "b"}\n')
    task = load_bundle(copy).tasks[3]
    assert task.items == (None, {"context": "a", "continuation": "b"})


def test_missing_files_are_named(copy):
    (copy / "eval_data" / "lm.jsonl").unlink()
    with pytest.raises(BundleError, match=r"lm\.jsonl"):
        load_bundle(copy)
    with pytest.raises(BundleError, match=r"core\.yaml"):
        load_bundle(copy / "nowhere")


def test_aliases_are_what_is_refused_not_plain_lists():
    specs = core_bundle._task_specs(
        Path("core.yaml"),
        b"icl_tasks: [{label: a, dataset_uri: b, num_fewshot: [0], icl_task_type: schema}]",
    )
    assert specs[0].label == "a"
