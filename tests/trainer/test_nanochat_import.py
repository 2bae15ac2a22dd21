"""nanochat's generations, told apart by their files: layouts, shards, traits, what is refused."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer import nanochat_files as files
from tests.trainer.nanochat_files import MAY, MAY_2GPU, V1, V2, V2_2GPU
from tests.trainer.test_nanochat_parity import imported
from trainer.contract.jobs import ImportParams
from trainer.contract.plan import make_plan
from trainer.contract.spec import resolve
from trainer.data.errors import DataError
from trainer.interop import nanochat, nanochat_import, nanochat_layout
from trainer.interop.errors import InteropError
from trainer.interop.nanochat import NanochatRun
from trainer.interop.nanochat_import import Candidate
from trainer.interop.nanochat_traits import signature

DATASET = V2 / "datasets" / "stdlib"
ALL = {"v1": V1, "may": MAY, "may, 2 GPUs": MAY_2GPU, "v2": V2}


def consider(path: Path, **params: Any) -> Candidate:
    asked = {"path": str(path), "name": "mine", "step": 60, **params}
    return nanochat_import.consider(ImportParams.model_validate(asked))


def read(base: Path) -> NanochatRun:
    """The checkpoint alone: no batch must be shared between the GPUs."""
    found, saved = nanochat_layout.choose(nanochat_layout.find(base), base, step=60)
    return nanochat.read(found, saved.step, nanochat.Options())


def refused(path: Path, **params: Any) -> InteropError:
    with pytest.raises(InteropError) as error:
        consider(path, **params)
    return error.value


# --- layouts -------------------------------------------------------------------------------------


def test_a_base_directory_is_listed() -> None:
    (one,) = nanochat_import.listing(V1).found
    assert (one.tag, one.stage, one.experiment, one.layout) == (
        "d4",
        "base",
        None,
        "base_checkpoints",
    )
    assert (one.steps, one.weights_only) == ([60], [120])
    first, *others = nanochat_import.listing(V2).found
    assert (first.experiment, first.tag, first.steps, first.dataset) == (
        "first_ladder",
        "d4",
        [60],
        "stdlib",
    )
    assert [one.layout for one in others] == ["folder"]


@pytest.mark.parametrize(
    "below", [".", "experiments", "experiments/first_ladder", "experiments/first_ladder/d4/base"]
)
def test_any_folder_down_to_the_checkpoints_own_will_do(below: str) -> None:
    found, saved = nanochat_layout.choose(nanochat_layout.find(V2 / below), V2)
    assert (found.experiment, found.tag, saved.step) == ("first_ladder", "d4", 60)
    assert nanochat_layout.tokenizer_of(found) == V2 / "datasets/stdlib/tokenizer"
    assert nanochat_layout.corpus_of(found, packed=True) == V2 / "datasets/stdlib"


def test_what_there_is_is_named_when_it_is_not_said_which(tmp_path: Path) -> None:
    base = files.copy(V1, tmp_path / "base")
    shutil.copytree(base / "base_checkpoints/d4", base / "base_checkpoints/d6")
    assert "d4 at 60; d6 at 60" in refused(base).reason
    assert consider(base, tag="d6").run.tag == "d6"
    assert "no checkpoint such as tag 'd8'" in refused(base, tag="d8").reason
    assert "holds no nanochat checkpoint" in refused(tmp_path / "base" / "tokenizer").reason


def test_the_newest_complete_step_is_taken_when_none_is_named() -> None:
    """Step 120 of the fixture has no optimizer."""
    assert consider(V1, step=None).run.step == 60


def test_another_stage_is_taken_only_when_it_is_named(tmp_path: Path) -> None:
    base = files.copy(V2, tmp_path / "base")
    chat = base / "experiments/first_ladder/d4/chat"
    shutil.copytree(files.checkpoint_folder(base), chat)
    (chat / "optim_000060_rank0.pt").unlink()
    kept = ("step", "val_bpb", "model_config", "user_config")
    files.edit(chat / "meta_000060.json", lambda meta: {key: meta[key] for key in kept})
    assert consider(base).run.found.stage == "base"
    assert "no run can continue from it" in refused(base, stage="chat").reason
    weights = consider(base, stage="chat", weights_only=True)
    assert weights.run.found.stage == "chat"
    assert weights.measured_bpb is None


def test_the_july_branch_is_v1_inside_v2s_folders(tmp_path: Path) -> None:
    base = files.copy(V1, tmp_path / "base")
    experiment = base / "experiments" / "july_first"
    experiment.mkdir(parents=True)
    (base / "base_checkpoints/d4").rename(tmp_path / "d4")
    (experiment / "d4").mkdir()
    (tmp_path / "d4").rename(experiment / "d4" / "base")
    (base / "tokenizer").rename(experiment / "tokenizer")
    (base / "datasets").mkdir()
    (base / "base_data_climbmix").rename(base / "datasets" / "climbmix")
    (experiment / "meta.json").write_text(json.dumps({"name": "july_first", "dataset": "climbmix"}))
    found = consider(base)
    assert found.run.generation == "July branch of 2026"
    assert found.spec.data.source == "parquet"
    assert found.corpus == base / "datasets" / "climbmix"
    assert found.spec.model.recipe == "2026-07"


def test_places_of_corpus_and_tokenizer_may_be_named(tmp_path: Path) -> None:
    base = files.copy(V1, tmp_path / "base")
    (base / "base_data_climbmix").rename(tmp_path / "text")
    (base / "tokenizer").rename(tmp_path / "words")
    error = refused(base)
    assert error.file.endswith("tokenizer.pkl")
    assert "--tokenizer" in error.reason
    error = refused(base, tokenizer=str(tmp_path / "words"))
    assert "--corpus" in error.reason
    places = {"corpus": str(tmp_path / "text"), "tokenizer": str(tmp_path / "words")}
    found = consider(base, **places)
    assert found.spec.data.path == str(tmp_path / "text")


def test_a_tokenizer_of_another_size_is_refused(tmp_path: Path) -> None:
    base = files.copy(V1, tmp_path / "base")
    folder = files.checkpoint_folder(base)
    files.edit(folder / "meta_000060.json", lambda m: m["model_config"].update(vocab_size=760))
    error = refused(base)
    assert error.file.endswith("tokenizer.pkl")
    assert "768 tokens and the model 760" in error.reason


# --- several GPUs --------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [2, 3, 4, 6])
@pytest.mark.parametrize("source", [V1, V2], ids=["v1", "v2"])
def test_shards_are_merged_to_what_one_gpu_had(tmp_path: Path, source: Path, world: int) -> None:
    base = files.copy(source, tmp_path / "base")
    whole = read(base)
    files.spread(base, world)
    merged = read(base)
    assert merged.world == world
    wanted, found = whole.optimizer_state(), merged.optimizer_state()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def of_rank(rank: int, change: Callable[[dict], Any]) -> Callable[[Path], None]:
    return lambda base: files.edit(files.shard(base, rank), change)


def later(content: dict) -> None:
    for entry in content["state"].values():
        if "step" in entry:
            entry["step"] = 59


def another_run(content: dict) -> None:
    content["state"][4]["exp_avg"] += 1


SHARD_DAMAGE: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "one missing": (lambda b: files.shard(b, 1).unlink(), "rank1", "spread over 2 GPUs"),
    "the first missing": (lambda b: files.shard(b, 0).unlink(), "rank0", "is not there"),
    "a foreign one": (
        lambda b: shutil.copyfile(files.shard(b, 1), files.shard(b, 2)),
        "rank2",
        "does not belong here",
    ),
    "of another step": (of_rank(1, later), "rank1", "shards of two steps are mixed"),
    "of another run": (of_rank(1, another_run), "rank1", "another step or run"),
    "a copy of another": (
        lambda b: shutil.copyfile(files.shard(b, 0), files.shard(b, 1)),
        "rank1",
        "is a copy of it",
    ),
    "of other groups": (
        of_rank(1, lambda c: c["param_groups"][0].update(lr=0.5)),
        "rank1",
        "its groups are not those",
    ),
    "not what it is stamped": (
        lambda b: [of_rank(r, lambda c: c.update(world_size=4))(b) for r in (0, 1)],
        "rank0",
        "states world_size 4",
    ),
    "an absurd stamp": (of_rank(0, lambda c: c.update(world_size=10**12)), "rank0", "world_size"),
    "cut short": (
        lambda b: files.shard(b, 1).write_bytes(files.shard(b, 1).read_bytes()[:100_000]),
        "rank1",
        "cut short",
    ),
}


@pytest.mark.parametrize("damage", SHARD_DAMAGE)
def test_a_damaged_set_of_shards_is_refused_by_file(tmp_path: Path, damage: str) -> None:
    change, file, words = SHARD_DAMAGE[damage]
    base = files.copy(V2_2GPU, tmp_path / "base")
    change(base)
    corpus = V2 / "datasets/stdlib"
    error = refused(base, corpus=str(corpus), tokenizer=str(corpus / "tokenizer"))
    assert Path(error.file).name == f"optim_000060_{file}.pt"
    assert words in error.reason


def test_padding_behind_the_last_matrix_must_be_zero(tmp_path: Path) -> None:
    """Two gates over three GPUs: the last one holds none."""
    base = files.copy(V2, tmp_path / "base")
    files.spread(base, 3)
    of_rank(2, lambda c: c["state"][7]["momentum_buffer"].fill_(1))(base)
    error = refused(base)
    assert Path(error.file).name == "optim_000060_rank2.pt"
    assert "not zero where no matrix" in error.reason


def test_one_gpus_optimizer_beside_another_is_foreign(tmp_path: Path) -> None:
    base = files.copy(V1, tmp_path / "base")
    shutil.copyfile(files.shard(base, 0), files.shard(base, 1))
    error = refused(base)
    assert Path(error.file).name == "optim_000060_rank1.pt"
    assert "does not belong here" in error.reason


def test_an_optimizer_of_another_step_is_refused(tmp_path: Path) -> None:
    base = files.copy(V1, tmp_path / "base")
    of_rank(0, later)(base)
    assert "59 updates where the checkpoint stands at step 60" in refused(base).reason


# --- traits --------------------------------------------------------------------------------------


def test_muon_of_july_leaves_the_sums_that_the_formula_gives() -> None:
    for source, muon in ((V1, "2026-07"), (V2, "2026-07"), (MAY, "2026-03"), (MAY_2GPU, "2026-03")):
        run = consider(source).run
        assert run.muon == run.traits.muon == muon
        ratios, late = signature(run.optimizer_state(), run.shape, 60)
        off = torch.minimum((ratios - 1).abs(), (late - 1).abs()).max().item()
        assert (off < 1e-4) == (muon == "2026-07")


def test_second_moments_of_zero_do_not_tell(tmp_path: Path) -> None:
    base = files.copy(V1, tmp_path / "base")

    def clear(content: dict) -> None:
        for entry in content["state"].values():
            if "second_momentum_buffer" in entry:
                entry["second_momentum_buffer"].zero_()

    of_rank(0, clear)(base)
    found = consider(base)
    assert found.run.traits.muon is None
    assert any("--muon" in line for line in found.findings.unknown)
    asked = consider(base, muon="2026-03")
    assert make_plan(asked.spec).hyperparameters.muon == "2026-03"


def test_the_option_has_the_last_word_on_muon() -> None:
    found = consider(MAY, muon="2026-03-bf16")
    assert make_plan(found.spec).hyperparameters.muon == "2026-03-bf16"
    other = consider(MAY, muon="2026-07")
    assert make_plan(other.spec).hyperparameters.muon == "2026-07"
    assert any("as asked for, although" in line for line in other.findings.notes)


def test_what_old_float32_runs_do_not_tell_is_named(tmp_path: Path) -> None:
    base = files.copy(MAY, tmp_path / "base")
    meta = files.checkpoint_folder(base) / "meta_000060.json"
    assert any("2026-03-bf16" in line for line in consider(base).findings.unknown)
    files.edit(meta, lambda m: m["user_config"].update(target_param_data_ratio=10.5))
    (line,) = consider(base).findings.unknown
    assert "10.5 suggests March" in line


def test_base_rates_betas_and_decays_are_those_of_the_optimizer_file(tmp_path: Path) -> None:
    """As nanochat's own resume has them, whatever the flags say."""
    base = files.copy(V2, tmp_path / "base")

    def change(content: dict) -> None:
        groups = content["param_groups"]
        groups[1].update(initial_lr=0.02, betas=(0.7, 0.99), weight_decay=0.003)
        for group in groups[6:]:
            group["initial_lr"] = 0.0015

    of_rank(0, change)(base)
    found = consider(base)
    hyper = make_plan(resolve(found.body)).hyperparameters
    assert (hyper.embedding_lr, hyper.matrix_lr) == (0.02, 0.0015)
    assert hyper.adamw is not None
    assert hyper.adamw["wte"].model_dump() == {"beta1": 0.7, "beta2": 0.99, "weight_decay": 0.003}
    before = make_plan(consider(V2).spec).hyperparameters
    assert hyper.unembedding_lr == before.unembedding_lr
    assert hyper.weight_decay == before.weight_decay
    (note,) = found.findings.notes
    assert "wte, matrix_lr" in note


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["param_groups"][0].update(eps=1e-8), "eps"),
        (lambda c: c["param_groups"][6].update(beta2=0.95), "beta2"),
        (lambda c: c["param_groups"][6].update(ns_steps=6), "ns_steps"),
        (lambda c: c["param_groups"][6].update(initial_lr=0.5), "different learning rates"),
        (lambda c: c["param_groups"][0].update(initial_lr=-1.0), "out of range"),
        (lambda c: c["param_groups"][0].update(betas=(0.8, 1.5)), "betas"),
        (lambda c: c["param_groups"][0].update(betas=torch.zeros(3)), "betas"),
    ],
)
def test_settings_that_cannot_be_kept_are_refused(
    tmp_path: Path, change: Callable[[dict], Any], words: str
) -> None:
    base = files.copy(V2, tmp_path / "base")
    of_rank(0, change)(base)
    error = refused(base)
    assert Path(error.file).name == "optim_000060_rank0.pt"
    assert words in error.reason


def test_the_rule_for_rates_is_read_from_the_optimizer_file(tmp_path: Path) -> None:
    """A model without smear whose rates scale as in July: each trait stands for itself."""
    base = files.copy(V2, tmp_path / "base")
    narrow = (64 / 768) ** -0.5 / 16

    def change(content: dict) -> None:
        for group, lr in zip(content["param_groups"], (0.008, 0.3, 0.15), strict=False):
            group["initial_lr"] = lr * narrow

    of_rank(0, change)(base)
    found = consider(base)
    assert (found.spec.model.recipe, found.spec.optimizer.recipe) == ("2026-09", "2026-07")
    assert found.spec.optimizer.groups is None


def test_v2_numbers_its_optimizer_by_the_order_of_the_model_file(tmp_path: Path) -> None:
    base = files.copy(V2, tmp_path / "base")
    whole = consider(base).run
    folder = files.checkpoint_folder(base)

    def backwards(state: dict) -> dict:
        names = list(state)
        layers = [n for n in names if n.startswith("transformer.h.") and ".ve_gate." not in n]
        return {n: state[n] for n in [n for n in names if n not in layers] + layers[::-1]}

    files.edit(folder / "model_000060.pt", backwards)

    def renumber(content: dict) -> None:
        """The stacks of a group in the new order; what is no square was one of each layer."""
        for group in content["param_groups"][7:]:
            entry = content["state"][group["params"][0]]
            for key, stack in entry.items():
                entry[key] = stack.flip(0)

    of_rank(0, renumber)(base)
    found, wanted = consider(base).run.optimizer_state(), whole.optimizer_state()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_what_v2_computed_in_is_read_from_its_log(tmp_path: Path) -> None:
    base = files.copy(V2, tmp_path / "base")
    log = base / "experiments/first_ladder/d4/base_train.log"
    assert consider(base).spec.numerics.precision == "fp32"
    text = log.read_text().replace("torch.float32", "torch.bfloat16")
    log.write_text(text)
    assert consider(base).spec.numerics.precision == "bf16"
    log.unlink()
    unknown = consider(base)
    assert unknown.spec.numerics.precision == "auto"
    assert any("--precision" in line for line in unknown.findings.unknown)
    assert consider(base, precision="bf16").spec.numerics.precision == "bf16"


def test_num_shards_of_v2_is_kept(tmp_path: Path) -> None:
    base = files.copy(V2, tmp_path / "base")
    assert consider(base).spec.data.num_shards is None
    meta = files.checkpoint_folder(base) / "meta_000060.json"
    files.edit(meta, lambda m: m["user_config"].update(num_shards=1))
    assert consider(base).spec.data.num_shards == 1


def test_the_window_of_v2_is_absolute(tmp_path: Path) -> None:
    base = files.copy(V2, tmp_path / "base")
    meta = files.checkpoint_folder(base) / "meta_000060.json"
    assert consider(base).plan.shape.windows == [512, 512, 512, 128]
    files.edit(meta, lambda m: m["model_config"].update(short_seq_len=64))
    assert consider(base).plan.shape.windows == [64, 64, 64, 128]


def test_val_bpb_is_measured_over_whole_batches_of_all_gpus(tmp_path: Path) -> None:
    """v2 on two GPUs measures eval_tokens // (4 rows x 128 tokens x 2) batches of both."""
    base = files.copy(V2_2GPU, tmp_path / "base")
    meta = files.checkpoint_folder(base) / "meta_000060.json"
    files.edit(meta, lambda m: m["user_config"].update(eval_tokens=8192 + 700))
    places = {"corpus": str(DATASET), "tokenizer": str(DATASET / "tokenizer")}
    assert consider(base, **places).spec.evaluate.eval_tokens == 8192
    files.edit(meta, lambda m: m["user_config"].update(eval_tokens=10))
    assert consider(base, **places).spec.evaluate.eval_tokens == 1024


def test_an_experiments_data_set_is_a_name_and_no_path(tmp_path: Path) -> None:
    base = files.copy(V2, tmp_path / "base")
    files.edit(
        base / "experiments/first_ladder/meta.json", lambda m: m.update(dataset="../../elsewhere")
    )
    assert consider(base).corpus == base / "datasets" / "stdlib"


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    base = files.copy(V1, tmp_path / "base")
    (base / "base_checkpoints").rename(tmp_path / "elsewhere_checkpoints")
    (base / "base_checkpoints").symlink_to(tmp_path / "elsewhere_checkpoints")
    assert "links that lead out of it" in refused(base).reason


# --- packed shards -------------------------------------------------------------------------------


def cut_short(data: Path) -> None:
    path = data / "train_00001.bin"
    path.write_bytes(path.read_bytes()[:-100])


def absurd_header(data: Path) -> None:
    path = data / "train_00000.bin"
    content = bytearray(path.read_bytes())
    content[12:16] = (2**31 - 1).to_bytes(4, "little")
    path.write_bytes(bytes(content))


def another_tokenizer(data: Path) -> None:
    path = data / "tokenizer" / "tokenizer.pkl"
    path.write_bytes(pickle.dumps(pickle.loads(path.read_bytes()), protocol=2))  # noqa: S301


PACKED_DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "a shard cut short": (cut_short, "train_00001.bin"),
    "a header with absurd counts": (absurd_header, "train_00000.bin"),
    "another pickle of the tokenizer": (another_tokenizer, "tokenizer.pkl"),
}


@pytest.mark.parametrize("damage", PACKED_DAMAGE)
def test_damaged_shards_are_refused_and_nothing_is_half_imported(
    tmp_path: Path, damage: str
) -> None:
    change, file = PACKED_DAMAGE[damage]
    base = files.copy(V2, tmp_path / "base")
    change(base / "datasets" / "stdlib")
    with pytest.raises(DataError, match=file):
        imported(tmp_path, str(base), step=60)
    assert not (tmp_path / "job" / "import").exists()


# --- no known generation -------------------------------------------------------------------------


def without(*names: str) -> Callable[[dict], dict]:
    return lambda state: {n: t for n, t in state.items() if n not in names}


def test_a_model_from_before_march_is_refused_by_its_generation(tmp_path: Path) -> None:
    base = files.copy(V1, tmp_path / "base")
    model = files.checkpoint_folder(base) / "model_000060.pt"
    files.edit(model, without("smear_gate.weight", "smear_lambda", "backout_lambda"))
    error = refused(base)
    assert error.file == str(model)
    for words in ("before 14 March 2026", "no smear gate", "no backout_lambda", "a new run"):
        assert words in error.reason


def test_a_file_of_no_generation_says_what_speaks_against_each(tmp_path: Path) -> None:
    base = files.copy(V1, tmp_path / "base")
    files.edit(files.checkpoint_folder(base) / "model_000060.pt", without("backout_lambda"))
    reason = refused(base).reason
    assert "backout_lambda" in reason
    assert "no known generation" in reason
    assert "against v1 of 3 July 2026: no backout_lambda" in reason
    assert "against v2 of September 2026: a smear gate" in reason


def test_traits_of_two_generations_are_each_read_as_they_are(tmp_path: Path) -> None:
    """Weights without a smear, and a data cursor and windows of v1."""
    base = files.copy(V1, tmp_path / "base")
    model = files.checkpoint_folder(base) / "model_000060.pt"
    files.edit(model, without("smear_gate.weight", "smear_lambda"))
    assert "no known generation" in refused(base).reason  # the optimizer still has the smear
    found = consider(base, weights_only=True)
    assert found.run.generation == "between two generations"
    assert found.plan.shape.windows == consider(V1).plan.shape.windows
    assert not found.run.shape.traits.smear
    assert any("combine traits" in line for line in found.findings.notes)


# --- weights alone -------------------------------------------------------------------------------


def test_a_missing_optimizer_is_named_with_what_is_possible(tmp_path: Path) -> None:
    base = files.copy(V1, tmp_path / "base")
    files.shard(base, 0).unlink()
    error = refused(base)
    assert Path(error.file).name == "optim_000060_rank0.pt"
    assert "--weights-only" in error.reason


@pytest.mark.parametrize("source", ALL.values(), ids=ALL)
def test_weights_alone_begin_with_fresh_moments(source: Path) -> None:
    found = consider(source, weights_only=True)
    whole = consider(source).run.optimizer_state()
    fresh = found.run.optimizer_state()
    assert {n: (t.shape, t.dtype) for n, t in fresh.items()} == {
        n: (t.shape, t.dtype) for n, t in whole.items()
    }
    assert not any(t.any() for t in fresh.values())
    assert found.findings.approximate is not None
    assert "moments start at zero" in found.findings.approximate


def test_a_model_from_a_hub_needs_no_corpus(tmp_path: Path) -> None:
    """Weights, meta and tokenizer in one folder, as models are shared."""
    shared = tmp_path / "nanochat-d4-shared"
    shared.mkdir()
    folder = files.checkpoint_folder(V1)
    for name in ("model_000060.pt", "meta_000060.json"):
        shutil.copyfile(folder / name, shared / name)
    for file in (V1 / "tokenizer").iterdir():
        shutil.copyfile(file, shared / file.name)
    kept = ("step", "val_bpb", "model_config")
    files.edit(shared / "meta_000060.json", lambda meta: {key: meta[key] for key in kept})
    found = consider(shared, weights_only=True)
    assert found.spec.data.source == "builtin"
    assert found.corpus is None
    assert any("the built-in text replaces it" in line for line in found.findings.notes)
    assert found.plan.shape.n_embd == 64
    names = ("v1 of 14 March to 2 July 2026", "v1 of 3 July 2026", "July branch of 2026")
    assert found.run.generation == " or ".join(names)
    assert any("--muon" in line for line in found.findings.unknown)


# --- dry run -------------------------------------------------------------------------------------


def test_a_dry_run_says_what_it_would_become() -> None:
    shown = nanochat_import.preview(consider(MAY_2GPU))
    assert (shown.generation, shown.gpus, shown.muon) == (
        "v1 of 14 March to 2 July 2026",
        2,
        "2026-03",
    )
    assert (shown.step, shown.tokens, shown.horizon_steps) == (60, 61_440, 60)
    assert shown.val_bpb == pytest.approx(3.417187, abs=1e-6)
    assert any("2 data streams" in line for line in shown.exact)
    assert any("packing buffer" in line for line in shown.inexact)
    assert any("0.05 % lower" in line for line in shown.notes)
