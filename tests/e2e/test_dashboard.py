"""The dashboard in a real browser: against a real daemon where something is done, against the
stub where a long or strange history has to be shown."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from pyarrow import parquet

from tests.e2e.conftest import WHEN, Daemon, OpenPage, away, refused, settled, unanswered, until
from tests.e2e.tunnel import tunnel

pytestmark = [pytest.mark.needs("browser"), pytest.mark.timeout(180)]
AXE = Path(__file__).parent / "vendor" / "axe-core" / "axe.min.js"
RUN = "#/runs/rtx4070-d12-200k"
LONG_TITLE = "#/runs/d12-batch-131k"
SCHEDULED = ["#/queue", "#/groups", "#/groups/ladder"]
DEMO = {"name": "demo", "horizon": {"steps": 2000}}


def button(page: Any, name: str) -> Any:
    return page.get_by_role("button", name=name, exact=True)


def expect_state(page: Any, state: str) -> None:
    page.locator(f".run-head .state[data-state={state}]").wait_for()


# --- with a real daemon --------------------------------------------------------------------------


def test_a_run_is_renamed_while_two_pages_show_it(daemon: Daemon, open_page: OpenPage) -> None:
    made = daemon.post("/runs", DEMO | {"start": False})
    other = open_page(f"{daemon.url}/#/runs/{made['id']}/plan")
    other.get_by_role("heading", name="demo").wait_for()
    page = open_page(f"{daemon.url}/#/runs/demo/plan")
    button(page, "More actions").click()
    page.get_by_role("menuitem", name="Edit…").click()
    page.get_by_role("textbox", name="Name", exact=True).fill("better")
    button(page, "Save").click()
    for shown in (page, other):
        shown.get_by_role("heading", name="better").wait_for()
        until(shown, "location.hash === '#/runs/better/plan'")
    page.goto(f"{daemon.url}/#/runs/{made['id']}")
    page.get_by_role("heading", name="better").wait_for()


def test_a_pause_on_the_page_says_so_and_when(daemon: Daemon, open_page: OpenPage) -> None:
    daemon.post("/runs", DEMO)
    daemon.wait("demo", lambda run: run["step"] > 3)
    page = open_page(f"{daemon.url}/#/runs/demo")
    button(page, "Pause").click()
    expect_state(page, "paused")
    page.get_by_text(re.compile(rf"^Paused by you on the page at {WHEN}\.$")).wait_for()


def test_a_run_is_created_from_the_form_with_its_plan_beside_it(
    daemon: Daemon, open_page: OpenPage
) -> None:
    page = open_page(f"{daemon.url}/#/new")
    page.get_by_label("Name", exact=True).fill("from-the-form")
    page.get_by_label("Depth: the one dial").fill("3")
    page.get_by_text("3 layers, width").wait_for()
    page.get_by_label("Depth: the one dial").fill("0")
    page.locator(".field-error", has_text="greater than or equal to 1").wait_for()
    page.said.clear()  # Chromium reports the 422 that was wanted
    page.get_by_label("Depth: the one dial").fill("3")
    page.get_by_text("3 layers, width").wait_for()
    button(page, "Create and start").click()
    page.get_by_role("heading", name="from-the-form").wait_for()
    assert daemon.run("from-the-form")["spec"]["model"]["depth"] == 3


def test_watch_pause_resume_and_extend_with_the_preview(
    daemon: Daemon, open_page: OpenPage
) -> None:
    daemon.post("/runs", DEMO)
    page = open_page(f"{daemon.url}/#/runs/demo")
    expect_state(page, "running")
    first = page.locator(".run-progress .bar-steps").inner_text()
    until(page, f"document.querySelector('.run-progress .bar-steps').innerText !== {first!r}")
    button(page, "Pause").click()
    expect_state(page, "paused")
    button(page, "Extend").click()
    page.get_by_label("How far").fill("3000")
    page.get_by_text("At the joint, step 2,000").wait_for()
    page.get_by_role("radio", name=re.compile("hold")).check()
    hold = page.locator("tr", has_text="Learning rate").filter(has_text="no change")
    hold.wait_for()
    page.get_by_role("dialog").get_by_role("button", name="Extend", exact=True).click()
    page.locator(".run-progress .bar-steps", has_text="3,000").wait_for()
    button(page, "Resume").click()
    expect_state(page, "running")
    assert daemon.run("demo")["end_step"] == 3000
    assert daemon.run("demo")["num_phases"] == 2


def test_a_cancel_says_what_it_loses_and_a_delete_wants_the_name(
    daemon: Daemon, open_page: OpenPage
) -> None:
    daemon.post("/runs", DEMO | {"checkpoint": {"every_steps": 1000}})
    daemon.wait("demo", lambda run: run["step"] > 3)
    page = open_page(f"{daemon.url}/#/runs/demo")
    button(page, "More actions").click()
    page.get_by_role("menuitem", name="Cancel…").click()
    button(page, "Cancel the run").click()
    expect_state(page, "cancelled")
    button(page, "More actions").click()
    page.get_by_role("menuitem", name="Delete…").click()
    assert button(page, "Delete permanently").is_disabled()
    page.get_by_label("Type demo to confirm").fill("demo")
    button(page, "Delete permanently").click()
    page.get_by_role("heading", name="No runs yet").wait_for()


def test_a_restart_of_the_daemon_leaves_neither_a_gap_nor_a_repeat(
    daemon: Daemon, open_page: OpenPage
) -> None:
    daemon.post("/runs", DEMO)
    page = open_page(f"{daemon.url}/#/runs/demo/events")
    expect_state(page, "running")
    with away(daemon, page):
        page.locator(".live[data-status=waiting]").wait_for()
        banner = page.locator(".away-banner", has_text=re.compile(r"not answered for \d+ s\. "))
        banner.wait_for()
        said = banner.inner_text()
        until(page, f"document.querySelector('.away-banner').innerText !== {said!r}")
        assert page.evaluate("document.documentElement.classList.contains('is-away')")
    page.locator(".live[data-status=live]").wait_for()
    page.locator(".away-banner").wait_for(state="hidden")
    daemon.post("/runs/demo/pause")
    expect_state(page, "paused")
    kept = httpx.get(f"{daemon.url}/v1/runs/demo/events", params={"limit": 1000}).json()["data"]
    until(page, f"document.querySelectorAll('.event').length >= {len(kept)}")
    shown = page.locator(".event > :last-child").all_inner_texts()
    assert sorted(shown) == sorted(event["message"] for event in kept)


@pytest.mark.parametrize("through", ["a tunnel", "a name of the network"])
def test_from_elsewhere_a_daemon_that_wants_its_token_is_used_like_any_other(
    tmp_path: Path, open_page: OpenPage, through: str
) -> None:
    """Login to a cookie; the stream, an action and a download. The tunnel has another port."""
    daemon = Daemon(tmp_path, step_seconds=0.1, auth="always", TRAIND_ALLOW_HOSTS='["box.lan"]')
    daemon.post("/runs", DEMO)
    with tunnel(daemon.port) as port:
        where = f"localhost:{port}" if through == "a tunnel" else f"box.lan:{daemon.port}"
        page = open_page(f"http://{where}/#/runs/demo")
        page.get_by_label("Token", exact=True).fill(daemon.token_file.read_text().strip())
        button(page, "Sign in").click()
        expect_state(page, "running")
        page.locator(".live[data-status=live]").wait_for()
        settled(page)
        page.said.clear()  # Chromium reports each 401 before the login
        with page.expect_download() as loaded:
            button(page, "Download").click()
            page.get_by_role("menuitem", name="Parquet").click()
        table = parquet.read_table(loaded.value.path())
        assert table.column_names == [
            "key",
            "step",
            "unix_seconds",
            "mean",
            "min",
            "max",
            "identity",
        ]
        assert "loss" in table["key"].to_pylist()
        button(page, "Pause").click()
        expect_state(page, "paused")
        page.context.close()
    daemon.end()


def test_a_dialog_open_while_the_daemon_restarts_goes_on(
    daemon: Daemon, open_page: OpenPage
) -> None:
    daemon.post("/runs", DEMO)
    page = open_page(f"{daemon.url}/#/runs/demo")
    expect_state(page, "running")
    button(page, "Extend").click()
    page.get_by_text("At the joint, step 2,000").wait_for()
    with away(daemon, page):
        page.get_by_label("How far").fill("2500")
        page.get_by_role("dialog").get_by_role("alert").wait_for()
    agree = page.get_by_role("dialog").get_by_role("button", name="Extend", exact=True)
    agree.click()  # waits until the preview has come
    page.locator(".run-progress .bar-steps", has_text="2,500").wait_for()


def test_what_was_asked_is_done_once_though_its_answer_is_lost(
    daemon: Daemon, open_page: OpenPage
) -> None:
    daemon.post("/runs", DEMO)
    page = open_page(f"{daemon.url}/#/runs/demo")
    expect_state(page, "running")

    def lose_the_answer(route: Any) -> None:
        route.fetch()
        route.abort("connectionreset")

    page.route("**/extend", lose_the_answer, times=1)
    answer = page.evaluate(
        "import('./static/api.js').then((api) => api.post('v1/runs/demo/extend', "
        "{ add_steps: 100 }))"
    )
    assert answer["run"]["end_step"] == daemon.run("demo")["end_step"] == 2100
    assert page.said == ["Failed to load resource: net::ERR_CONNECTION_RESET"]
    page.said.clear()


def test_a_page_whose_files_do_not_arrive_comes_by_itself(
    stub_url: str, open_page: OpenPage
) -> None:
    page = open_page("about:blank")
    with refused(page, "**/static/page.js", "failed"):
        page.goto(f"{stub_url}/{RUN}", wait_until="commit")
        page.get_by_text("This page loads by itself").wait_for()
    page.get_by_role("heading", name="rtx4070-d12-200k").wait_for()
    assert set(page.said) == {"Failed to load resource: net::ERR_FAILED"}
    page.said.clear()


VIEWS = {
    "#/": ".run-name",
    "#/new": ".plan-summary dd",
    "#/playground": "select:has(option[value='rtx4070-d12-200k@140000'])",
    "#/compare": ".compare-charts dt",
    "#/queue": ".waiting .card",
    "#/groups": ".table .run-name",
    "#/groups/ladder": ".group-charts dt",
    RUN: ".chart-status:has-text('steps')",
    f"{RUN}/checkpoints": ".tab-checkpoints tbody tr",
    f"{RUN}/evaluations": ".tab-evaluations tbody tr",
    f"{RUN}/samples": ".sample",
    f"{RUN}/events": ".event",
    f"{RUN}/log": ".log:has-text('step')",
    f"{RUN}/attempts": ".tab-attempts tbody tr",
}


@pytest.mark.parametrize("place", VIEWS)
def test_a_view_opened_while_nothing_answers_comes_by_itself_later(
    stub_url: str, open_page: OpenPage, place: str
) -> None:
    page = open_page(f"{stub_url}/{RUN}/plan")
    settled(page)
    with unanswered(page):
        page.evaluate("place => { location.hash = place; }", place)
        page.get_by_role("alert").first.wait_for()
    page.locator(VIEWS[place]).first.wait_for()
    page.get_by_role("alert").first.wait_for(state="detached")
    settled(page)


# --- long and strange histories ------------------------------------------------------------------


def test_a_hundred_runs_are_there_at_once_and_nothing_moves(
    stub_url: str, open_page: OpenPage
) -> None:
    page = open_page("about:blank")
    page.add_init_script(
        "window.moved = 0; new PerformanceObserver((list) => { for (const e of list.getEntries())"
        " if (!e.hadRecentInput) window.moved += e.value; })"
        ".observe({ type: 'layout-shift', buffered: true });"
    )
    page.goto(stub_url)
    page.locator("tbody tr").nth(99).wait_for(state="attached")
    milliseconds = page.evaluate("performance.now()")
    assert milliseconds < 3000  # the bar of one second is measured on a quiet machine
    page.wait_for_timeout(1500)
    assert page.evaluate("window.moved") < 0.1


def test_a_sample_is_shown_while_it_is_written(stub_url: str, open_page: OpenPage) -> None:
    """The job continues for as long as its stream has not said the end."""
    page = open_page(f"{stub_url}/{RUN}/samples")
    job = {"id": "job_1", "kind": "sample", "where": "cpu", "stage": "sampling", "message": ""}
    running = {**job, "state": "running"}
    samples = [{"prompt": "Paris is", "text": " a city"}]
    ended = {**job, "state": "completed", "result": {"samples": samples}}
    told = 'event: token\ndata: {"prompt": 0, "text": " a ci"}\n\n'
    page.route("**/v1/runs/*/samples", lambda r: (
        r.fulfill(status=202, json=running) if r.request.method == "POST" else r.continue_()
    ))  # fmt: skip
    shown = [running]
    page.route("**/v1/jobs/job_1", lambda r: r.fulfill(json=shown[-1]))
    page.route(
        "**/v1/jobs/job_1/stream", lambda r: r.fulfill(content_type="text/event-stream", body=told)
    )
    button(page, "Sample now").click()
    page.get_by_role("textbox", name="Prompt").fill("Paris is")
    button(page, "Sample").click()
    answer = page.locator(".sample-answer")
    answer.get_by_text("running: sampling", exact=False).wait_for()
    answer.locator("pre", has_text=re.compile(r"^ a ci$")).wait_for()
    shown.append(ended)
    answer.locator("pre", has_text=re.compile(r"^ a city$")).wait_for()


def test_a_run_page_takes_thirteen_requests_until_its_charts_are_there(
    stub_url: str, open_page: OpenPage
) -> None:
    page = open_page("about:blank")
    network = page.context.new_cdp_session(page)
    network.send("Network.enable")
    asked: list[str] = []
    network.on("Network.requestWillBeSent", lambda event: asked.append(event["request"]["url"]))
    page.goto(f"{stub_url}/{RUN}")
    page.locator(".chart-status", has_text="per point").wait_for()
    over_the_wire = [url.removeprefix(stub_url) for url in asked if url.startswith(stub_url)]
    assert len(over_the_wire) <= 13, over_the_wire


def test_runs_are_filtered_and_compared(stub_url: str, open_page: OpenPage) -> None:
    page = open_page(stub_url)
    button(page, "failed 2").click()
    until(page, "document.querySelectorAll('tbody tr:not([hidden])').length === 2")
    button(page, "all 100").click()
    for name in ("rtx4070-d12-200k", "sweep-010"):
        page.get_by_label(f"Select {name}", exact=True).check()
    button(page, "Compare 2").click()
    loss = page.get_by_role("region", name="Loss, smoothed").or_(
        page.locator("section.chart[aria-label='Loss, smoothed']")
    )
    loss.locator("dt", has_text="sweep-010").wait_for()
    bpb = page.locator("section.chart[aria-label='Validation']")
    bpb.locator("dt", has_text="sweep-010 as b81f2c").wait_for()
    assert bpb.locator(".readout dt").count() == 4
    for axis in ("Tokens", "FLOPs", "Time", "Training time"):
        page.get_by_role("radio", name=axis, exact=True).check(force=True)
        bpb.locator("dt", has_text="sweep-010 as b81f2c").wait_for()
    button(page, "Keys").click()
    page.get_by_role("menuitemcheckbox", name="Gradient norm").click()
    page.locator("section.chart[aria-label='Gradient norm'] dt", has_text="sweep-010").wait_for()
    held = page.url
    page.goto("about:blank")
    page.goto(held)
    page.locator("section.chart[aria-label='Gradient norm'] dt", has_text="sweep-010").wait_for()
    until(page, "document.querySelectorAll('input[value=training]:checked').length === 1")


def test_compare_draws_all_it_is_given_or_says_its_limit(
    stub_url: str, open_page: OpenPage
) -> None:
    names = [f"sweep-{i:03d}" for i in range(10, 22)]
    page = open_page(f"{stub_url}/#/compare?keys=loss_smooth&runs={','.join(names)}")
    page.locator(".compare-charts .readout dt", has_text=names[-1]).wait_for()
    assert page.locator(".compare-charts .readout dt").count() == 12
    more = ",".join(f"sweep-{i:03d}" for i in range(10, 40))
    page = open_page(f"{stub_url}/#/compare?keys=loss_smooth&runs={more}")
    page.get_by_text("The address names 30 runs; the first 24 are drawn").wait_for()


def test_a_drag_asks_the_daemon_for_finer_bins(stub_url: str, open_page: OpenPage) -> None:
    page = open_page(f"{stub_url}/{RUN}")
    stage = page.locator(".chart-stage").first
    page.locator(".chart-status", has_text="per point").wait_for()
    box = stage.bounding_box()
    with page.expect_request(re.compile(r"metrics\?.*from_step=\d+")):
        page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 80)
        page.mouse.down()
        page.mouse.move(box["x"] + 0.403 * box["width"] + 8, box["y"] + 80, steps=4)
        page.mouse.up()
    until(page, "location.hash.includes('from=')")
    button(page, "All").click()
    until(page, "!location.hash.includes('from=')")


def shown_runs(page: Any) -> list[str]:
    return page.locator("tbody .run-name").all_inner_texts()


def test_runs_are_searched_sorted_and_shown_as_one_likes(
    stub_url: str, open_page: OpenPage
) -> None:
    page = open_page(stub_url)
    page.locator("tbody tr").nth(99).wait_for(state="attached")
    page.keyboard.press("/")
    page.keyboard.type("#old")
    until(page, "document.querySelectorAll('tbody tr').length === 2")
    assert sorted(shown_runs(page)) == ["sweep-010", "sweep-011"]
    page.get_by_label("Search runs").fill("")
    page.get_by_role("button", name="Loss", exact=True).click()
    until(page, "location.hash.includes('sort=loss')")
    page.locator("th[aria-sort=ascending]", has_text="Loss").wait_for()
    losses = [float(v) for v in page.locator("td.col-loss").all_inner_texts() if v != "–"]
    assert losses == sorted(losses)
    button(page, "Columns").click()
    page.get_by_role("menuitemcheckbox", name="Parameters").click()
    page.locator("td.col-params", has_text="286 M").first.wait_for()
    page.reload()
    page.locator("td.col-params", has_text="286 M").first.wait_for()
    until(page, "document.querySelector('th[aria-sort=ascending]')")


def test_runs_are_sorted_on_a_phone_too(stub_url: str, open_page: OpenPage) -> None:
    page = open_page(stub_url, width=390, height=844, has_touch=True, is_mobile=True)
    page.locator("tbody tr").nth(99).wait_for(state="attached")
    assert button(page, "Ascending; sort descending").is_hidden()
    page.get_by_label("Sort by").select_option(label="Loss")
    until(page, "location.hash.includes('sort=loss')")
    losses = [float(v) for v in page.locator("td.col-loss").all_inner_texts() if v != "–"]
    assert losses == sorted(losses)
    button(page, "Ascending; sort descending").tap()
    until(page, "location.hash.includes('sort=-loss')")
    losses = [float(v) for v in page.locator("td.col-loss").all_inner_texts() if v != "–"]
    assert losses == sorted(losses, reverse=True)
    box = button(page, "Descending; sort ascending").bounding_box()
    assert box
    assert min(box["width"], box["height"]) >= 43.5
    assert serious(page) == []
    page.set_viewport_size({"width": 1280, "height": 900})
    page.locator("th[aria-sort=descending]", has_text="Loss").wait_for()
    page.get_by_label("Sort by").wait_for(state="hidden")


@pytest.mark.parametrize("width", [390, 1280])
def test_every_number_of_a_run_can_be_read_in_the_list(
    stub_url: str, open_page: OpenPage, width: int
) -> None:
    """However many columns are shown on a phone, none lies under the box that selects the run."""
    page = open_page("about:blank")
    page.set_viewport_size({"width": width, "height": 844})

    def near_its_end(route: Any) -> None:
        answer = route.fetch().json()
        for run in answer["data"]:
            run |= {"eta_seconds": 59 * 60 + 58, "training_seconds": 23 * 3600 + 59 * 60}
        route.fulfill(json=answer)

    page.route(re.compile(r"/v1/runs\?"), near_its_end)
    page.goto(stub_url)
    page.locator("td.col-took", has_text="23 h 59 min").first.wait_for()
    if width < 500:
        button(page, "Columns").click()
        page.get_by_role("menuitemcheckbox", name="Tokens").click()
        page.locator("td.col-tokens").first.wait_for()
    for row in page.locator("tbody tr").all()[:3]:
        box, name = row.locator(".pick").bounding_box(), row.locator(".who").bounding_box()
        assert box
        assert name
        assert box["x"] + box["width"] <= name["x"] + 1
    bad = page.evaluate(
        "[...document.querySelectorAll('tbody tr')].slice(0, 3).flatMap((row) => {"
        " const left = row.querySelector('.who').getBoundingClientRect().left;"
        " return [...row.querySelectorAll('td.num')].filter((cell) =>"
        " cell.scrollWidth > cell.clientWidth + 1"
        f" || ({width} < 500 && cell.getBoundingClientRect().left < left - 1));"
        "}).map((cell) => cell.outerHTML)"
    )
    assert bad == []


def test_several_runs_are_tagged_at_once(stub_url: str, open_page: OpenPage) -> None:
    page = open_page(stub_url)
    for name in ("sweep-020", "sweep-021"):
        page.get_by_label(f"Select {name}", exact=True).check()
    button(page, "Selected").click()
    page.get_by_role("menuitem", name="Tag…").click()
    page.get_by_label("Tags to add").fill("kept, new")
    button(page, "Tag").click()
    for name in ("sweep-020", "sweep-021"):
        page.locator("tr", has_text=name).locator(".tag", has_text="kept").wait_for()


def test_a_run_is_edited_where_it_may_change(stub_url: str, open_page: OpenPage) -> None:
    page = open_page(f"{stub_url}/#/runs/sweep-030")
    button(page, "More actions").click()
    page.get_by_role("menuitem", name="Edit…").click()
    page.get_by_role("textbox", name="Title").fill("A better title")
    page.get_by_role("textbox", name="Notes").fill("what I think of it")
    with page.expect_request(lambda request: request.method == "PATCH") as asked:
        button(page, "Save").click()
    assert asked.value.post_data_json == {
        "title": "A better title", "metadata": {"notes": "what I think of it"},
    }  # fmt: skip
    page.locator(".head-title", has_text="A better title").wait_for()


def test_two_checkpoints_write_side_by_side_with_one_seed(
    stub_url: str, open_page: OpenPage
) -> None:
    page = open_page(f"{stub_url}/#/playground")
    page.locator("select[aria-label='Second model']").select_option("rtx4070-d12-200k@130000")
    page.get_by_label("Seed").fill("7")
    asked = []
    page.on("request", lambda r: asked.append(r) if r.url.endswith("/v1/completions") else None)
    button(page, "Write").click()
    for pane, step in (("First model", 140_000), ("Second model", 130_000)):
        region = page.get_by_role("region", name=pane)
        region.get_by_text(
            f"The capital of France is Paris, says rtx4070-d12-200k@{step}."
        ).wait_for()
        token = region.locator(".token").first
        assert "log-probability -0.500 (60.7 %)" in token.get_attribute("title")
    bodies = [request.post_data_json for request in asked]
    assert [body["seed"] for body in bodies] == [7, 7]
    assert len({body["model"] for body in bodies}) == 2
    page.reload()
    page.locator(".past li", has_text="seed 7").get_by_text("Paris").first.wait_for()


def test_jobs_stay_where_they_can_be_found_and_cancelled(
    stub_url: str, open_page: OpenPage
) -> None:
    page = open_page(f"{stub_url}/#/jobs")
    page.locator("tr", has_text="job_2").get_by_text("writing 40 %").wait_for()
    with page.expect_request(lambda request: request.method == "DELETE") as asked:
        page.get_by_role("button", name="Cancel export job_2").click()
    assert asked.value.url.endswith("/v1/jobs/job_2")
    page.locator("tr", has_text="job_1").get_by_text("Details").click()
    page.locator("tr", has_text="job_1").get_by_text('"text": " Paris"').wait_for()


def test_a_job_shows_progress_result_files_and_log_and_is_cancelled(
    stub_url: str, open_page: OpenPage
) -> None:
    page = open_page(f"{stub_url}/#/jobs")
    button(page, "Open export job_2").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("progressbar").wait_for()
    dialog.get_by_text("writing 40 %").wait_for()
    dialog.get_by_text("reading step 9").wait_for()
    with page.expect_request(lambda r: r.method == "DELETE" and r.url.endswith("job_2")):
        button(page, "Cancel the job").click()
    page.goto(f"{stub_url}/#/jobs/job_1")
    link = dialog.get_by_role("link", name="tokenizer/tokenizer.pkl")
    with page.expect_download() as loaded:
        link.click()
    assert Path(loaded.value.path()).read_bytes() == b"pickled"
    assert serious(page) == []


def test_data_that_failed_shows_the_log_of_its_job(stub_url: str, open_page: OpenPage) -> None:
    """There was no trainer: its log is empty, and the reason stands in another one."""
    page = open_page(stub_url)
    failed = httpx.get(f"{stub_url}/v1/runs/nanochat-d20-oom").json()
    failed |= {"reason": "data_unusable", "reason_message": "The corpus could not be prepared."}
    page.route("**/v1/runs/nanochat-d20-oom", lambda route: route.fulfill(json=failed))
    page.route(f"**/v1/runs/{failed['id']}", lambda route: route.fulfill(json=failed))
    page.goto(f"{stub_url}/#/runs/nanochat-d20-oom")
    card = page.get_by_role("region", name="Why this run failed")
    card.get_by_text("parquet: no column named text").wait_for()
    card.get_by_role("link", name="Open log").click()
    page.get_by_role("dialog").get_by_text("parquet: no column named text").wait_for()


@pytest.mark.parametrize(
    ("reason", "text", "body"),
    [
        (
            "non_finite_loss",
            "Resume and rewind past the bad batch",
            {"recovery": {"on_non_finite": "rewind"}},
        ),
        ("compile_failed", "Resume without compiling", {"overrides": {"compile": False}}),
        ("crashed", "Resume from the last checkpoint", {}),
    ],
)
def test_the_button_sends_the_remedy_of_the_run(
    stub_url: str, open_page: OpenPage, reason: str, text: str, body: dict[str, Any]
) -> None:
    page = open_page(stub_url)
    failed = httpx.get(f"{stub_url}/v1/runs/nanochat-d20-oom").json() | {
        "reason": reason, "remedy": {"label": text, "request": body},
    }  # fmt: skip
    page.route("**/v1/runs/nanochat-d20-oom", lambda route: route.fulfill(json=failed))
    page.route(f"**/v1/runs/{failed['id']}/resume", lambda route: route.fulfill(json=failed))
    page.goto(f"{stub_url}/#/runs/nanochat-d20-oom")
    with page.expect_request(lambda r: r.url.endswith("/resume")) as asked:
        button(page, text).click()
    assert asked.value.post_data_json == body


def test_the_bar_leads_to_help_and_to_the_api(stub_url: str, open_page: OpenPage) -> None:
    page = open_page(stub_url)
    page.get_by_role("link", name="Help", exact=True).click()
    page.get_by_role("heading", name="Where things are").wait_for()
    assert page.locator(".topbar a[href=docs]").inner_text() == "API"


def test_a_dialog_begins_in_its_first_field_and_goes_with_its_page(
    stub_url: str, open_page: OpenPage
) -> None:
    page = open_page(f"{stub_url}/{RUN}")
    button(page, "Extend").click()
    until(page, "document.activeElement.matches('.extend select')")
    page.evaluate("location.hash = '#/compare'")
    page.get_by_role("dialog").wait_for(state="detached")


@pytest.mark.parametrize("place", ["", RUN, f"{RUN}/checkpoints", "#/new", "#/jobs", *SCHEDULED])
def test_what_fingers_touch_is_large_enough(stub_url: str, open_page: OpenPage, place: str) -> None:
    page = open_page(f"{stub_url}/{place}", width=390, height=844, has_touch=True, is_mobile=True)
    settled(page)
    small = page.evaluate(
        "Array.from(document.querySelectorAll('button, .button, select, input[type=range], .tabs a,"
        " .topbar a')).filter((e) => e.offsetParent && !e.closest('thead'))"
        ".filter((e) => { const box = e.getBoundingClientRect();"
        " return Math.min(box.width, box.height) < 43.5; }).map((e) => e.outerHTML)"
    )
    assert small == []


def test_the_part_that_is_shown_is_in_view_among_its_tabs(
    stub_url: str, open_page: OpenPage
) -> None:
    page = open_page(f"{stub_url}/{RUN}/plan", width=390, height=844, has_touch=True)
    settled(page)
    for row in (".tabs", ".topbar nav"):
        edges = page.locator(row).evaluate(
            "(row) => [row, row.querySelector('[aria-current]')].map((e) => e"
            ".getBoundingClientRect()).flatMap((box) => [box.left, box.right])"
        )
        left, right, link_left, link_right = edges
        assert left - 1 <= link_left < link_right <= right + 1, row
    assert page.evaluate("scrollY") == 0


@pytest.mark.parametrize("place", ["#/help", "#/queue", "#/groups/ladder"])
def test_no_line_of_a_text_crosses_a_wall(stub_url: str, open_page: OpenPage, place: str) -> None:
    page = open_page(f"{stub_url}/{place}", width=3840, height=2160)
    settled(page)
    long = page.evaluate(
        "[...document.querySelectorAll('main p')].filter((p) => {"
        " const text = document.createRange(); text.selectNodeContents(p);"
        " const size = parseFloat(getComputedStyle(p).fontSize);"
        " return text.getBoundingClientRect().width > 80 * size; }).map((p) => p.textContent)"
    )
    assert long == []


def with_changes(page: Any, pattern: str, **changes: Any) -> None:
    """Answers of the stub with some fields changed: what a real daemon would need a fault for."""

    def change(route: Any) -> None:
        answer = route.fetch().json()
        route.fulfill(json=answer | changes)

    page.route(re.compile(pattern), change)


def test_a_full_disk_is_said_where_one_looks(stub_url: str, open_page: OpenPage) -> None:
    waits = {"code": "disk_full", "message": "Waiting for disk space, 12.3 kB left.", "since": 1.0}
    page = open_page("about:blank")
    page.route("**/v1/runs/*/events", lambda route: route.abort("failed"))
    page.route(
        re.compile(r"/events$"),
        lambda route: route.fulfill(content_type="text/event-stream", body=""),
    )
    # by its name at first, then by its id
    pattern = r"/v1/runs/(rtx4070-d12-200k|run_00000000)(/progress)?$"
    with_changes(page, pattern, condition=waits)
    page.goto(f"{stub_url}/{RUN}")
    page.locator(".state[data-tone=warn]", has_text="waiting for disk").wait_for()
    page.locator(".standing", has_text="Waiting for disk space, 12.3 kB left.").wait_for()
    for key, note in (("speed", "no steps"), ("mfu", "no steps"), ("eta", "no steps")):
        tile = page.locator(f".stats [data-key={key}]")
        tile.get_by_text("–", exact=True).wait_for()
        tile.get_by_text(note).wait_for()
    page.locator(".run-progress .bar[data-tone=warn]").wait_for()


@pytest.mark.parametrize(
    "place", ["", "#/compare", "#/playground", "#/jobs", "#/queue", "#/groups"]
)
def test_a_full_disk_is_named_on_every_page(stub_url: str, open_page: OpenPage, place: str) -> None:
    page = open_page("about:blank")
    with_changes(page, r"/v1/system$", disk_is_full=True, disk_free_bytes=12_345)
    page.goto(f"{stub_url}/{place}")
    page.locator(".disk-banner", has_text="The disk is full: 12.3 kB left.").wait_for()
    settled(page)
    assert serious(page) == []
    page.unroute_all(behavior="wait")
    page.evaluate("location.hash = '#/help'")
    page.locator(".disk-banner").wait_for(state="hidden")


def test_a_completed_run_says_what_it_took(stub_url: str, open_page: OpenPage) -> None:
    page = open_page(f"{stub_url}/#/runs/sweep-009")
    took = page.locator(".stats [data-key=eta]", has_text="Took")
    took.wait_for()
    assert "2 d 18 h" in took.inner_text()
    page.goto(f"{stub_url}/")
    row = page.locator("tr", has_text="sweep-009")
    row.locator("td.col-took", has_text="2 d 18 h").wait_for()
    assert row.locator("td.col-eta").inner_text() == "–"
    running = page.locator("tr", has_text="rtx4070-d12-200k").locator("td.col-eta")
    assert re.search(r"\d", running.inner_text())
    assert page.locator("th.col-eta").inner_text() == "Time left"


def test_a_cause_of_failure_is_a_sentence_wherever_it_stands(
    stub_url: str, open_page: OpenPage
) -> None:
    page = open_page("about:blank")
    cause = "no space is left on /data"
    with_changes(page, r"/v1/runs/nanochat-d20-oom$", reason_message=cause)

    def in_the_list(route: Any) -> None:
        answer = route.fetch().json()
        for run in answer["data"]:
            if run["name"] == "nanochat-d20-oom":
                run["reason_message"] = cause
        route.fulfill(json=answer)

    page.route(re.compile(r"/v1/runs\?"), in_the_list)
    page.goto(f"{stub_url}/#/runs/nanochat-d20-oom")
    card = page.get_by_role("region", name="Why this run failed")
    card.get_by_text("No space is left on /data.", exact=True).wait_for()
    page.goto(f"{stub_url}/#/")
    row = page.locator("tr", has_text="nanochat-d20-oom")
    row.get_by_text("No space is left on /data.", exact=True).wait_for()


def test_a_long_path_in_a_cause_stays_within_its_card_on_a_phone(
    stub_url: str, open_page: OpenPage
) -> None:
    page = open_page("about:blank")
    page.set_viewport_size({"width": 390, "height": 844})
    cause = f"the job could not be started: /data/{'job_65d891325f53ee61' * 5}/.order.json.5725.tmp"
    with_changes(page, r"/v1/runs/nanochat-d20-oom$", reason_message=cause)
    page.goto(f"{stub_url}/#/runs/nanochat-d20-oom")
    card = page.get_by_role("region", name="Why this run failed")
    card.get_by_text("The job could not be started").wait_for()
    over = card.evaluate(
        "(card) => [...card.querySelectorAll('p, a, button, pre')].filter((e) =>"
        " e.getBoundingClientRect().right > card.getBoundingClientRect().right"
        " || (e.tagName === 'P' && e.scrollWidth > e.clientWidth + 1)).map((e) => e.outerHTML)"
    )
    assert over == []


def test_a_failed_run_says_what_to_do_and_does_it(stub_url: str, open_page: OpenPage) -> None:
    page = open_page(f"{stub_url}/#/runs/nanochat-d20-oom")
    card = page.get_by_role("region", name="Why this run failed")
    card.get_by_text("The device ran out of memory.").wait_for()
    card.get_by_text("Segmentation fault").wait_for()
    assert card.get_by_role("link", name="Open log").get_attribute("href").endswith("/log")
    page.route("**/resume", lambda route: route.fulfill(status=202, json={}))
    with page.expect_request("**/resume") as asked:
        card.get_by_role("button", name="Resume with 4 rows per pass (now 8)").click()
    assert asked.value.post_data_json == {"overrides": {"device_batch_size": 4}}
    card.get_by_role("link", name="Clone and edit").click()
    name = page.get_by_label("Name", exact=True)
    name.wait_for()
    assert name.input_value() == "nanochat-d20-oom-copy"


def test_form_and_json_lose_nothing_on_the_way(stub_url: str, open_page: OpenPage) -> None:
    page = open_page(f"{stub_url}/#/new")
    page.get_by_label("Name", exact=True).fill("both-ways")
    page.get_by_role("radio", name="JSON").check(force=True)
    text = page.get_by_role("textbox", name="The spec as JSON")
    spec = {
        "name": "edited", "preset": "demo", "start": False, "notify": ["https://a.example/x"],
        "batch": {"tokens": 4096, "device_batch_size": "auto"}, "horizon": {"tokens": 10**6},
        "data": {"tokenizer": {"train": {"chars": 9}}}, "metadata": {"why": "a test"},
    }  # fmt: skip
    text.fill(json.dumps(spec))
    page.get_by_role("radio", name="Form").check(force=True)
    assert page.get_by_label("Name", exact=True).input_value() == "edited"
    page.get_by_text("Kept unchanged, without a form field").wait_for()
    page.get_by_role("radio", name="JSON").check(force=True)
    assert json.loads(text.input_value()) == spec
    text.fill("{")
    page.get_by_role("radio", name="Form").click(force=True)
    page.get_by_text("Not JSON yet").wait_for()
    assert text.is_visible()
    page.said.clear()  # the plans of specs that are not valid


def test_the_form_shows_what_a_preset_amounts_to(stub_url: str, open_page: OpenPage) -> None:
    """An empty field is not sent; it shows the value that then holds, as the daemon resolved it."""
    page = open_page(f"{stub_url}/#/new")
    depth = page.get_by_label("Depth: the one dial")
    until(page, "document.querySelector('input[placeholder=\"2048\"]')")
    assert depth.get_attribute("placeholder") == "4"
    devices = page.get_by_label("Device", exact=True).locator("option").all_inner_texts()
    assert devices == ["automatic", "cuda:0: NVIDIA GeForce RTX 4070 (now rtx4070-d12-200k)"]
    page.get_by_label("Preset").select_option("rtx4070-d12")
    page.get_by_text("12 layers, width 768").wait_for()
    assert depth.get_attribute("placeholder") == "12"
    horizon = page.get_by_label("Horizon", exact=True).locator("option").first
    assert horizon.inner_text() == "130,000 steps (preset)"
    shape = page.get_by_label("Warmdown shape").locator("option").first
    assert shape.text_content() == "cosine (preset)"
    dataset = page.get_by_label("Dataset", exact=True)
    assert dataset.get_attribute("placeholder") == "karpathy/climbmix-400b-shuffle"
    page.get_by_role("radio", name="JSON").check(force=True)
    text = page.get_by_role("textbox", name="The spec as JSON")
    assert json.loads(text.input_value()) == {"preset": "rtx4070-d12"}


def test_a_place_is_chosen_in_the_form(stub_url: str, open_page: OpenPage) -> None:
    page = open_page(f"{stub_url}/#/new")
    page.get_by_text("Several GPUs, or a cluster").click()
    page.get_by_label("Where", exact=True).select_option("slurm")
    page.get_by_label("Nodes", exact=True).fill("2")
    page.get_by_label("Partition", exact=True).fill("gpu")
    page.get_by_role("radio", name="JSON").check(force=True)
    text = page.get_by_role("textbox", name="The spec as JSON")
    place = {"engine": "slurm", "nodes": 2, "partition": "gpu"}
    assert json.loads(text.input_value()) == {"place": place}
    page.said.clear()  # a plan for a cluster whose programs are missing here


def test_a_resume_moves_a_run_to_a_cluster_and_back(stub_url: str, open_page: OpenPage) -> None:
    failed = httpx.get(f"{stub_url}/v1/runs/nanochat-d20-oom").json()
    page = open_page(f"{stub_url}/#/runs/nanochat-d20-oom")
    page.route(f"**/v1/runs/{failed['id']}/resume", lambda route: route.fulfill(json=failed))
    job = {"engine": "slurm", "nodes": 2, "time_limit": "12:00:00"}
    for choice, fields, place in (
        ("slurm", {"Nodes": "2", "Time limit of a job": "12:00:00"}, job),
        ("local", {}, None),
    ):
        button(page, "More actions").click()
        page.get_by_role("menuitem", name="Resume with overrides…").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Trains from now on").select_option(choice)
        for label, value in fields.items():
            dialog.get_by_label(label, exact=True).fill(value)
        with page.expect_request(lambda r: r.url.endswith("/resume")) as asked:
            dialog.get_by_role("button", name="Resume", exact=True).click()
        assert asked.value.post_data_json == {"place": place}
        dialog.wait_for(state="detached")


def test_a_clone_keeps_what_was_switched_off(stub_url: str, open_page: OpenPage) -> None:
    """A null left out would be the preset's value again: a run that never samples would sample."""
    spec = {"name": "quiet", "start": False, "evaluate": {"sample_every": None, "bpb_every": None}}
    made = httpx.post(f"{stub_url}/v1/runs", json=spec).json()
    page = open_page(f"{stub_url}/#/new?from=quiet")
    page.get_by_text("4 layers, width").wait_for()
    page.get_by_role("radio", name="JSON").check(force=True)
    text = page.get_by_role("textbox", name="The spec as JSON")
    cloned = json.loads(text.input_value())
    kept = {key: value for key, value in made["spec"].items() if key != "start"}
    assert cloned == kept | {"name": "quiet-copy"}
    assert cloned["evaluate"]["sample_every"] is None
    httpx.delete(f"{stub_url}/v1/runs/quiet")


def test_a_spec_is_copied_as_curl_and_as_yaml(stub_url: str, open_page: OpenPage) -> None:
    page = open_page(f"{stub_url}/#/new", permissions=["clipboard-read", "clipboard-write"])
    page.get_by_label("Name", exact=True).fill("it's")
    page.get_by_label("Depth: the one dial").fill("3")
    copied = []
    for kind in ("curl", "YAML"):
        button(page, "Copy").click()
        page.get_by_role("menuitem", name=f"Copy as {kind}").click()
        page.get_by_text("Copied.").last.wait_for()
        copied.append(page.evaluate("navigator.clipboard.readText()"))
    curl, text = copied
    assert json.loads(shlex.split(curl)[-1]) == {"name": "it's", "model": {"depth": 3}}
    assert yaml.safe_load(text) == {"name": "it's", "model": {"depth": 3}}
    page.said.clear()  # the plan of a name that is not valid


def test_nothing_in_the_head_of_a_chart_moves_under_the_pointer(
    stub_url: str, open_page: OpenPage
) -> None:
    page = open_page(f"{stub_url}/{RUN}")
    settled(page)
    page.locator(".chart-status", has_text="per point").wait_for()
    stages = "document.querySelectorAll('.chart-stage')"
    boxes = f"Array.from({stages}, (s) => s.getBoundingClientRect().top)"
    before = page.evaluate(boxes)
    box = page.locator(".chart-stage").first.bounding_box()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 80)
    tip = page.locator(".chart-tip:visible")
    tip.wait_for()
    assert re.search(r"tokens", tip.inner_text())
    assert re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d, after .* of training", tip.inner_text())
    assert page.evaluate(boxes) == before


def test_an_empty_chart_has_no_ticks(stub_url: str, open_page: OpenPage) -> None:
    page = open_page("about:blank")
    page.add_init_script(
        "window.drawn = []; const draw = CanvasRenderingContext2D.prototype.fillText;"
        "CanvasRenderingContext2D.prototype.fillText = function (text, ...at) {"
        " window.drawn.push([this.canvas.closest('.chart')?.ariaLabel, text]);"
        " return draw.call(this, text, ...at); };"
    )
    page.goto(f"{stub_url}/#/runs/a-run-that-waits")
    settled(page)
    page.locator(".chart-empty").first.wait_for()
    drawn = page.evaluate("window.drawn")
    assert [text for title, text in drawn if title == "Loss"] == []
    assert [text for title, text in drawn if title == "Learning rate"], "the plan is drawn"


def test_what_people_type_stays_text(stub_url: str, open_page: OpenPage) -> None:
    page = open_page(f"{stub_url}/#/runs/d12-batch-131k")
    title = page.locator(".head-title")
    title.wait_for()
    assert title.inner_text().startswith("<img src=x onerror=alert(1)> &amp; <b>bold</b>")
    assert page.locator("main img, main b:has-text('bold')").count() == 0


@pytest.mark.parametrize(
    "place",
    [
        "",
        RUN,
        "#/new",
        "#/compare",
        "#/playground",
        f"{RUN}/checkpoints",
        "#/jobs",
        LONG_TITLE,
        *SCHEDULED,
    ],
)
@pytest.mark.parametrize("width", [390, 3840])
def test_every_page_fits_a_phone_and_a_wall(
    stub_url: str, open_page: OpenPage, place: str, width: int
) -> None:
    page = open_page(f"{stub_url}/{place}", width=width, height=900, has_touch=width < 500)
    settled(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    "place",
    ["", RUN, "#/new", "#/compare", "#/playground", "#/jobs", "#/help"]
    + SCHEDULED
    + [f"{RUN}/{part}" for part in ("checkpoints", "evaluations", "samples", "events", "log")]
    + [f"{RUN}/attempts", f"{RUN}/plan", "#/runs/nanochat-d20-oom"],
)
def test_axe_finds_nothing_serious(
    stub_url: str, open_page: OpenPage, place: str, scheme: str
) -> None:
    page = open_page(f"{stub_url}/{place}", color_scheme=scheme)
    settled(page)
    assert serious(page) == []


def test_the_dialogs_are_accessible_too(stub_url: str, open_page: OpenPage) -> None:
    page = open_page(f"{stub_url}/{RUN}")
    button(page, "Extend").click()
    page.get_by_text("At the joint, step").wait_for()
    assert serious(page) == []
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="detached")
    button(page, "More actions").click()
    assert serious(page) == []


def serious(page: Any) -> list[str]:
    """axe's serious and critical findings: rule and element."""
    page.emulate_media(reduced_motion="reduce")  # a colour on its way to another is no finding
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run(document).then((r) => r.violations)")
    return [
        f"{v['id']}: {v['nodes'][0]['html'][:160]} {v['nodes'][0].get('failureSummary', '')[:200]}"
        for v in found
        if v["impact"] in ("serious", "critical")
    ]


def test_everything_can_be_done_from_the_keyboard(stub_url: str, open_page: OpenPage) -> None:
    page = open_page(stub_url)
    page.locator("tbody tr").first.wait_for()
    page.keyboard.press("Tab")
    until(page, "document.activeElement.textContent.includes('Skip')")
    page.keyboard.press("Enter")
    until(page, "document.activeElement.id === 'main'")
    tab_to(page, "sweep-009")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="sweep-009").wait_for()
    tab_to(page, "Extend")
    page.keyboard.press("Enter")
    page.get_by_text("At the joint, step").wait_for()
    page.keyboard.press("Escape")
    until(page, "document.activeElement.textContent === 'Extend'")
    settled(page)
    page.locator(".chart-stage").first.focus()
    page.keyboard.press("ArrowLeft")
    page.locator(".chart-stage[aria-label*='Loss at 1']").wait_for()
    with page.expect_request(re.compile(r"metrics\?.*from_step=\d+")):
        page.keyboard.press("+")


def tab_to(page: Any, text: str) -> None:
    for _ in range(120):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == text:
            return
    raise AssertionError(f"{text} cannot be reached")


def test_the_theme_follows_the_system_until_one_is_chosen(
    stub_url: str, open_page: OpenPage
) -> None:
    page = open_page(stub_url, color_scheme="dark")
    theme = "document.documentElement.dataset.theme"
    until(page, f"{theme} === 'dark'")
    settled(page)
    page.emulate_media(color_scheme="light")
    until(page, f"{theme} === 'light'")
    page.get_by_role("button", name="Theme: system").click()
    page.get_by_role("button", name="Theme: light").click()
    page.reload()
    page.get_by_role("button", name="Theme: dark").wait_for()
    until(page, f"{theme} === 'dark'")


def test_a_daemon_with_a_token_asks_for_it_once(guarded_url: str, open_page: OpenPage) -> None:
    page = open_page(guarded_url)
    page.get_by_label("Token", exact=True).fill("wrong")
    button(page, "Sign in").click()
    page.get_by_role("alert").wait_for()
    page.get_by_label("Token", exact=True).fill("sesame")
    button(page, "Sign in").click()
    page.get_by_role("link", name="rtx4070-d12-200k").first.wait_for()
    page.said.clear()  # Chromium reports each 401 that was wanted
    page.reload()
    page.get_by_role("link", name="rtx4070-d12-200k").first.wait_for()
