"""Groups over HTTP and under the supervisor: members, budgets, noise, gains, fits, deletion."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.database import tables
from server.domain import groups, runs
from server.queries import run_views
from server.scaling.fit import PowerLaw
from server.schemas.groups import GroupRequest
from server.schemas.runs import PatchRun
from tests.server.asgi import Asgi
from tests.server.house import House

LAW = PowerLaw(0.9, 0.6, 0.3, 1e11)


@pytest.fixture
def asgi(tmp_path: Path) -> Iterator[Asgi]:
    made = Asgi(tmp_path / "data")
    yield made
    made.close()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    built = House(tmp_path)
    yield built
    built.close()


def create(asgi: Asgi, name: str = "ladder", **body: Any) -> dict[str, Any]:
    answer = asgi.post("/v1/groups", {"name": name, **body})
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"/v1/groups/{answer.json()['id']}"
    return answer.json()


def finish(asgi: Asgi, run: str, loss: float, **totals: float) -> None:
    """Put a run at the end of its plan with this val bpb, as its journal would."""
    with asgi.db.write() as session:
        row = run_views.get_run(session, run)
        row.state, row.step, row.queue_position = "completed", row.end_step, None
        row.tokens_seen = row.end_step * row.batch_tokens
        row.totals = {"seconds": 60.0, **totals}
        row.progress = {"val_bpb": loss}
        session.add(
            tables.Evaluation(
                run_id=row.id, kind="bpb", step=row.end_step, value=loss, identity="same",
                settings={}, result={}, seconds=1.0, unix_seconds=1.0,
            )
        )  # fmt: skip


def finish_by_law(asgi: Asgi, group: dict[str, Any], factor: float = 1.0) -> None:
    for member in group["members"]:
        finish(asgi, member["name"], LAW.at(member["planned_flops"] * factor))


class TestCreation:
    def test_members_are_the_product_of_depths_grid_and_seeds(self, asgi: Asgi) -> None:
        made = create(
            asgi, depths=[2, 4], grid={"optimizer.matrix_lr": [0.01, 0.02]}, repeats=2
        )  # fmt: skip
        assert [m["name"] for m in made["members"][:5]] == [
            "ladder-d2-matrix_lr0.01-s0", "ladder-d2-matrix_lr0.01-s1",
            "ladder-d2-matrix_lr0.02-s0", "ladder-d2-matrix_lr0.02-s1",
            "ladder-d4-matrix_lr0.01-s0",
        ]  # fmt: skip
        assert made["num_members"] == 8
        assert made["counts"] == {"queued": 8}
        assert [m["seed"] for m in made["members"][:2]] == [42, 43]
        run = asgi.get("/v1/runs/ladder-d4-matrix_lr0.02-s1").json()
        assert run["spec"]["model"]["depth"] == 4
        assert run["spec"]["optimizer"]["matrix_lr"] == 0.02
        assert run["spec"]["numerics"]["seed"] == 43

    def test_members_wait_below_what_runs_unless_the_base_says_otherwise(self, asgi: Asgi) -> None:
        create(asgi, depths=[2])
        create(asgi, "first", depths=[2], base={"priority": 7})
        assert asgi.get("/v1/runs/ladder-d2").json()["spec"]["priority"] == -10
        assert asgi.get("/v1/runs/first-d2").json()["spec"]["priority"] == 7

    def test_a_bad_member_is_refused_with_its_place_and_none_is_made(self, asgi: Asgi) -> None:
        answer = asgi.post(
            "/v1/groups",
            {"name": "g", "depths": [2, 4], "grid": {"batch.tokens": [2048, 2049]}},
        )
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == "/grid/batch.tokens/1"
        assert "member 2 of 4 (d2, batch.tokens=2049)" in answer.json()["detail"]
        assert asgi.get("/v1/runs").json()["data"] == []
        assert asgi.get("/v1/groups").json()["data"] == []

    @pytest.mark.parametrize(
        ("body", "pointer"),
        [
            ({"base": {"modle": {}}}, "/base/modle"),
            ({"grid": {"optimizer.matrx_lr": [1.0]}}, "/grid/optimizer.matrx_lr/0"),
            ({"depths": [4, 2]}, "/depths"),
            ({"base": {"name": "x"}}, "/base/name"),
            ({"grid": {"name": ["a", "b"]}}, "/grid/name"),
            ({"grid": {"numerics.seed": [1, 2]}}, "/grid/numerics.seed"),
            ({"depths": [2], "grid": {"model.depth": [1]}}, "/grid/model.depth"),
            ({"grid": {"optimizer.matrix_lr": [0.1, 0.1]}}, "/grid/optimizer.matrix_lr"),
            ({"depths": list(range(1, 65)), "repeats": 5}, "/repeats"),
            ({"budget": {}}, "/budget"),
            ({"budget": {"kwh": 1.0}}, "/budget/kwh"),
            ({"budget": {"minutes": 1}, "base": {"budget": {"tokens": 5}}}, "/budget"),
        ],
    )
    def test_what_is_wrong_is_pointed_at(
        self, asgi: Asgi, body: dict[str, Any], pointer: str
    ) -> None:
        answer = asgi.post("/v1/groups", {"name": "g", **body})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == pointer, answer.text

    def test_a_name_in_use_is_refused_whole(self, asgi: Asgi) -> None:
        create(asgi, depths=[2])
        assert asgi.post("/v1/groups", {"name": "ladder"}).json()["type"].endswith("name-taken")
        asgi.create("other-d4")
        answer = asgi.post("/v1/groups", {"name": "other", "depths": [2, 4]})
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (409, "/name")
        assert asgi.get("/v1/runs/other-d2").status_code == 404

    def test_a_repeat_with_the_same_key_makes_nothing_twice(self, asgi: Asgi) -> None:
        body, key = {"name": "g", "depths": [2, 3]}, {"Idempotency-Key": "once"}
        first = asgi.post("/v1/groups", body, headers=key)
        again = asgi.post("/v1/groups", body, headers=key)
        assert (first.status_code, again.status_code) == (201, 201)
        assert first.json() == again.json()
        assert len(asgi.get("/v1/runs").json()["data"]) == 2

    def test_another_horizon_replaces_that_of_the_base(self, asgi: Asgi) -> None:
        create(asgi, base={"horizon": {"data_param_ratio": 2}}, grid={"horizon.steps": [10, 20]})
        assert asgi.get("/v1/runs/ladder-steps20").json()["end_step"] == 20

    def test_names_that_do_not_fit_are_numbers(self, asgi: Asgi) -> None:
        made = create(asgi, grid={"model.window_pattern": ["L"], "data.packing": ["lossless"]})
        assert made["members"][0]["name"] == "ladder-window_patternL-packinglossless"
        made = create(asgi, "g", grid={"numerics.compile": [True], "evaluate.prompts": [["a b"]]})
        assert made["members"][0]["name"] == "g-001"


class TestComparison:
    def test_seeds_give_the_noise_and_what_exceeds_it_is_real(self, asgi: Asgi) -> None:
        made = create(asgi, grid={"optimizer.matrix_lr": [0.01, 0.02, 0.03]}, repeats=3)
        means = {0.01: 1.0, 0.02: 0.9, 0.03: 1.001}
        for member in made["members"]:
            spread = 0.002 * (member["seed"] - 43)
            finish(asgi, member["name"], means[member["variant"]["optimizer.matrix_lr"]] + spread)
        found = asgi.get("/v1/groups/ladder").json()
        assert found["noise"]["spread"] == pytest.approx(0.002)
        assert found["noise"]["degrees_of_freedom"] == 6
        first, second, third = found["cells"]
        assert found["baseline"] == "optimizer.matrix_lr=0.01"
        assert (first["gain"], first["val_bpb_mean"]) == (None, pytest.approx(1.0))
        assert second["gain"] == pytest.approx(0.1)
        assert second["gain_uncertainty"] == pytest.approx(
            2.4469 * 0.002 * (2 / 3) ** 0.5, rel=1e-3
        )
        assert (second["is_real"], third["is_real"]) == (True, False)
        assert found["best_val_bpb"] == pytest.approx(0.898)
        assert found["is_over"]

    def test_one_seed_each_says_nothing_about_noise(self, asgi: Asgi) -> None:
        made = create(asgi, grid={"optimizer.matrix_lr": [0.01, 0.02]})
        for member in made["members"]:
            finish(asgi, member["name"], 1.0)
        found = asgi.get("/v1/groups/ladder").json()
        assert found["cells"][1]["is_real"] is None
        assert "Give repeats" in found["noise"]["note"]

    def test_a_multiplier_is_the_baselines_flops_for_the_same_loss(self, asgi: Asgi) -> None:
        made = create(
            asgi, depths=[2, 3, 4, 5], grid={"optimizer.matrix_lr": [0.01, 0.02]}
        )  # fmt: skip
        for member in made["members"]:
            better = 1.3 if member["variant"]["optimizer.matrix_lr"] == 0.02 else 1.0
            finish(asgi, member["name"], LAW.at(member["planned_flops"] * better))
        cells = asgi.get("/v1/groups/ladder").json()["cells"]
        inner = [c for c in cells if c["variant"]["optimizer.matrix_lr"] == 0.02 and c["depth"] < 5]
        assert [c["compute_multiplier"] for c in inner] == [pytest.approx(1.3, rel=0.02)] * 3
        last = cells[-1]
        assert last["compute_multiplier"] is None
        assert "better than every run" in last["multiplier_note"]

    def test_another_group_may_be_the_baseline(self, asgi: Asgi) -> None:
        finish_by_law(asgi, create(asgi, "old", depths=[2, 3, 4]))
        finish_by_law(asgi, create(asgi, "new", depths=[3]), 0.8)
        found = asgi.get("/v1/groups/new?baseline=old").json()
        assert found["baseline"] == "group old"
        assert found["cells"][0]["compute_multiplier"] == pytest.approx(0.8, rel=0.02)
        assert found["cells"][0]["gain"] < 0
        assert asgi.get("/v1/groups/new?baseline=none").status_code == 404
        create(asgi, "empty", depths=[2])
        assert asgi.get("/v1/groups/new?baseline=empty").status_code == 422

    def test_only_what_reached_its_end_is_compared(self, asgi: Asgi) -> None:
        made = create(asgi, repeats=2)
        finish(asgi, made["members"][0]["name"], 1.0)
        with asgi.db.write() as session:
            row = run_views.get_run(session, made["members"][1]["name"])
            row.progress, row.step = {"val_bpb": 0.5}, 10
        found = asgi.get("/v1/groups/ladder").json()
        assert [m["is_finished"] for m in found["members"]] == [True, False]
        assert found["cells"][0]["num_finished"] == 1
        assert found["cells"][0]["val_bpb_mean"] == 1.0

    def test_a_loss_measured_on_other_text_is_left_out(self, asgi: Asgi) -> None:
        made = create(asgi, repeats=3)
        for member in made["members"]:
            finish(asgi, member["name"], 1.0)
        with asgi.db.write() as session:
            row = session.get_one(tables.Evaluation, 1)
            row.identity, row.value = "other", 0.1
        found = asgi.get("/v1/groups/ladder").json()
        assert found["cells"][0]["num_finished"] == 2
        assert "ladder-s0" in found["notes"][0]


class TestLadder:
    def test_four_depths_predict_the_next_one(self, asgi: Asgi) -> None:
        made = create(asgi, depths=[2, 3, 4, 5])
        finish_by_law(asgi, made)
        found = asgi.get("/v1/groups/ladder").json()
        [fit] = found["fits"]
        ahead = fit["prediction"]
        assert ahead["depth"] == 6
        assert ahead["val_bpb"] == pytest.approx(LAW.at(ahead["flops"]), rel=1e-3)
        low, high = ahead["val_bpb_interval"]
        assert low <= ahead["val_bpb"] <= high
        deepest = found["members"][-1]
        assert ahead["hours"] == pytest.approx(60 / 3600 * ahead["flops"] / deepest["flops"])
        assert "depth 5, measured" in ahead["time_source"]
        assert ahead["kwh"] is None
        assert "Hoffmann" in fit["source"]
        assert any("There is one seed per depth" in s for s in fit["not_told"])
        assert any("times beyond the largest run" in s for s in fit["not_told"])
        further = asgi.get("/v1/groups/ladder?next_depth=8").json()["fits"][0]["prediction"]
        assert further["depth"] == 8
        assert further["val_bpb"] < ahead["val_bpb"]

    def test_a_loss_that_does_not_fall_makes_no_law_and_says_so(self, asgi: Asgi) -> None:
        made = create(asgi, depths=[2, 3, 4, 5])
        for loss, member in enumerate(made["members"], 3):
            finish(asgi, member["name"], float(loss))
        [fit] = asgi.get("/v1/groups/ladder").json()["fits"]
        assert fit["a"] == 0
        assert any("does not fall as the FLOPs grow" in s for s in fit["not_told"])

    def test_energy_is_predicted_where_it_was_measured(self, asgi: Asgi) -> None:
        made = create(asgi, depths=[2, 3, 4, 5])
        for member in made["members"]:
            finish(asgi, member["name"], LAW.at(member["planned_flops"]), energy_joules=6000.0)
        ahead = asgi.get("/v1/groups/ladder").json()["fits"][0]["prediction"]
        assert ahead["kwh"] == pytest.approx(ahead["hours"] * 0.1)  # 100 W

    def test_a_fit_waits_for_four_depths_and_says_so(self, asgi: Asgi) -> None:
        made = create(asgi, depths=[2, 3, 4, 5])
        for member in made["members"][:3]:
            finish(asgi, member["name"], 1.0)
        found = asgi.get("/v1/groups/ladder").json()
        assert found["fits"] == []
        assert "No fit yet: 3 of at least 4 depths" in found["notes"][0]


class TestLife:
    def test_groups_are_listed_page_by_page(self, asgi: Asgi) -> None:
        for name in ("a", "b", "c"):
            create(asgi, name, depths=[2])
        page = asgi.get("/v1/groups?limit=2").json()
        assert [g["name"] for g in page["data"]] == ["c", "b"]
        rest = asgi.get(f"/v1/groups?limit=2&after={page['next']}").json()
        assert ([g["name"] for g in rest["data"]], rest["has_more"]) == (["a"], False)

    def test_cancel_reaches_every_run_that_has_not_ended(self, asgi: Asgi) -> None:
        made = create(asgi, depths=[2, 3])
        finish(asgi, made["members"][0]["name"], 1.0)
        answer = asgi.post("/v1/groups/ladder/cancel")
        assert answer.status_code == 202
        assert answer.json()["counts"] == {"cancelling": 1, "completed": 1}
        assert asgi.post("/v1/groups/ladder/cancel").status_code == 200

    def test_a_group_is_deleted_without_its_runs(self, asgi: Asgi) -> None:
        made = create(asgi, depths=[2])
        assert asgi.request("DELETE", f"/v1/groups/{made['id']}").status_code == 204
        assert asgi.get("/v1/groups/ladder").status_code == 404
        assert asgi.get("/v1/runs/ladder-d2").status_code == 200

    def test_its_runs_go_with_it_only_when_all_have_ended(self, asgi: Asgi) -> None:
        made = create(asgi, depths=[2, 3])
        finish(asgi, "ladder-d2", 1.0)
        asgi.app.state.notices = None
        refused = asgi.request("DELETE", "/v1/groups/ladder?runs=true")
        assert refused.status_code == 409
        assert "ladder-d3" in refused.json()["detail"]
        finish(asgi, "ladder-d3", 1.0)
        directory = asgi.settings.paths.run(made["members"][0]["run"]).root
        directory.mkdir(parents=True)
        assert asgi.request("DELETE", "/v1/groups/ladder?runs=true").status_code == 204
        assert asgi.get("/v1/runs").json()["data"] == []
        assert not directory.exists()

    def test_a_deleted_run_leaves_its_group(self, asgi: Asgi) -> None:
        create(asgi, depths=[2, 3])
        finish(asgi, "ladder-d2", 1.0)
        assert asgi.request("DELETE", "/v1/runs/ladder-d2").status_code == 204
        assert asgi.get("/v1/groups/ladder").json()["num_members"] == 1


class TestOrder:
    def test_members_train_in_their_order(self, house: House) -> None:
        """Cheapest depth first, whatever their ids, and however their data becomes ready."""
        with house.db.write() as session:
            asked = {"name": "order", "base": {"horizon": {"steps": 3}}, "repeats": 6}
            groups.create(session, GroupRequest.model_validate(asked), house.settings, 1e9)
        with house.db.read() as session:
            ids = [run.id for run in groups.runs_of(session, groups.get(session, "order"))]
        with house.daemon():
            for run_id in ids:
                house.becomes(run_id, "completed", seconds=60)
        began = [house.run(run_id).started_at or 0.0 for run_id in ids]
        assert began == sorted(began)


class TestBudget:
    def test_a_spent_budget_saves_and_pauses(
        self, house: House, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        house.behave(monkeypatch, a1={"hold_at": 20})
        tokens = 10 * 2048
        run_id = house.create(budget={"tokens": tokens})
        with house.daemon():
            run = house.becomes(run_id, "paused")
            assert (run.reason, run.desired_state) == ("budget_spent", "paused")
            assert run.reason_message.startswith(f"Its budget of {tokens:,} tokens is spent at")
            assert run.step * 4096 >= tokens  # the fake trainer's steps
            with pytest.raises(Exception, match="budget"):
                house.ask(runs.resume, run_id)
            with house.db.write() as session:
                row = session.get_one(tables.Run, run_id)
                runs.patch(session, row, PatchRun.model_validate({"budget": None}), time.time())
            house.ask(runs.resume, run_id)
            house.becomes(run_id, "completed")
        assert house.states(run_id)[:5] == ["queued", "starting", "running", "pausing", "paused"]
        house.check(run_id)

    def test_a_run_that_finishes_within_its_budget_is_not_stopped(self, house: House) -> None:
        run_id = house.create(
            steps=20, budget={"tokens": 20 * 4096}
        )  # the fake trainer has steps of 4,096 tokens
        with house.daemon():
            house.becomes(run_id, "completed")
