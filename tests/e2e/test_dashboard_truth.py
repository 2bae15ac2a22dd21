"""What the dashboard says is so: each test holds one thing that a page once got wrong."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.database.db import Database
from server.queries import run_views
from server.reporting import report
from server.settings import Settings
from tests.e2e import canvas_probe as probe
from tests.e2e.conftest import Daemon, OpenPage, away, settled, until
from tests.server import reference_run

pytestmark = [pytest.mark.needs("browser"), pytest.mark.timeout(180)]
RUN = "#/runs/rtx4070-d12-200k"
NIGHT_SECONDS = 40 * 3600
Answer = dict[str, Any]
MakeDaemon = Callable[..., Daemon]


def probed(open_page: OpenPage, **context: Any) -> Any:
    """A page whose canvases can be read back, still empty."""
    page = open_page("about:blank", **context)
    page.add_init_script(probe.INSTALL)
    return page


def changed(page: Any, pattern: str, change: Callable[[Answer], None]) -> None:
    """Answers of the stub after `change`: what a real daemon would take hours to come to."""

    def answer(route: Any) -> None:
        body = route.fetch().json()
        change(body)
        route.fulfill(json=body)

    page.route(re.compile(pattern), answer)


# --- compare -------------------------------------------------------------------------------------


def test_a_comparison_shows_every_run_however_short_and_marks_what_the_zoom_leaves_out(
    uneven_url: str, open_page: OpenPage
) -> None:
    page = probed(open_page)
    compared = f"{uneven_url}/#/compare?keys=loss_smooth&runs=long,middle,short"
    page.goto(compared)
    until(page, "(probedChart()?.lines.length ?? 0) >= 3")
    seen = probe.chart(page)
    assert len(seen["lines"]) == 3
    for line in seen["lines"]:
        heights = [y for _, y, _ in line["points"]]
        inside = [0 <= y <= seen["height"] for y in heights]
        assert sum(inside) > len(inside) / 2, line["colour"]
        assert inside[-1], "where it ends is what one compares"
    page.get_by_role("radio", name="Log", exact=True).check(force=True)
    before = [t["text"] for t in seen["texts"]]
    until(page, f"probedChart().texts.map((t) => t.text).join() !== {','.join(before)!r}")
    page.goto("about:blank")
    page.goto(f"{compared}&from=1000&to=5000")
    until(page, "(probedChart()?.marks.length ?? 0) >= 2")
    seen = probe.chart(page)
    marked = {mark["colour"]: mark["points"] for mark in seen["marks"]}
    assert len(marked) == 2, "the runs of 900 and of 229 steps lie left of the view"
    for points in marked.values():
        assert max(x for x, _, _ in points) < seen["width"] / 5


# --- one unit ------------------------------------------------------------------------------------


def test_the_planned_weight_decay_goes_on_where_the_followed_one_ends(
    stub_url: str, open_page: OpenPage
) -> None:
    page = probed(open_page)
    page.goto(f"{stub_url}/{RUN}")
    page.locator(".chart-status", has_text="per point").wait_for()
    title = "Momentum and weight decay"
    until(page, f"probedChart({title!r}).lines.filter((l) => l.dash).length === 2")
    followed, planned = probe.lines(page, "line-6", title)
    assert (followed["dash"], planned["dash"]) == (False, True)
    end, begin = followed["points"][-1], planned["points"][0]
    assert abs(end[0] - begin[0]) < 3
    assert abs(end[1] - begin[1]) < 3, "a step of the line where only the plan begins"


# --- what is in the way ---------------------------------------------------------------------------


def test_a_full_disk_shows_on_the_run_and_in_the_list_and_goes_again(
    make_daemon: MakeDaemon, open_page: OpenPage, tmp_path: Path
) -> None:
    room = tmp_path / "room"
    daemon = make_daemon(wait_at=5, until_there=str(room))
    daemon.post("/runs", {"name": "demo", "horizon": {"steps": 5000}})
    page, listed = open_page(f"{daemon.url}/#/runs/demo"), open_page(f"{daemon.url}/")
    for shown in (page, listed):
        badge = shown.locator(".state[data-tone=warn]", has_text="waiting for disk").first
        badge.wait_for()
    page.locator(".standing", has_text="Waiting for disk space, ").wait_for()
    listed.locator(".reason", has_text="Waiting for disk space, ").wait_for()
    room.touch()
    for shown in (page, listed):
        shown.locator(".state[data-state=running][data-tone=good]").first.wait_for()


def test_a_silent_run_counts_the_seconds_since_its_last_step(
    stub_url: str, open_page: OpenPage
) -> None:
    silent = {"code": "silent", "message": "No step.", "since": time.time() - 40}
    page = open_page("about:blank")
    page.route(
        re.compile(r"/events$"),
        lambda route: route.fulfill(content_type="text/event-stream", body=""),
    )
    changed(
        page, r"/v1/runs/rtx4070-d12-200k(/progress)?$", lambda run: run.update(condition=silent)
    )
    page.goto(f"{stub_url}/{RUN}")
    page.locator(".state[data-tone=warn]", has_text="silent").wait_for()
    standing = page.locator(".standing .reason")
    said = standing.inner_text()
    seconds = re.fullmatch(r"No step for (\d\d) s; a step usually takes 1\.18 s\.", said)
    assert seconds is not None, said
    assert int(seconds[1]) >= 40
    until(page, f"document.querySelector('.standing .reason').innerText !== {said!r}")


def test_a_page_that_asks_for_nothing_notices_that_the_daemon_is_away(
    daemon: Daemon, open_page: OpenPage
) -> None:
    page = open_page(f"{daemon.url}/#/help")
    page.get_by_role("heading", name="Where things are").wait_for()
    banner = page.locator(".away-banner", has_text="The daemon has not answered for")
    with away(daemon, page):
        banner.wait_for()
    page.locator(".away-banner").wait_for(state="hidden")


def test_a_checkpoint_reaches_the_page_by_the_stream_while_no_step_is_done(
    make_daemon: MakeDaemon, open_page: OpenPage
) -> None:
    """The trainer stands still, and whatever the page asks for gets a stale answer."""
    daemon = make_daemon(hold_at=7, save_every=1000, saves_when_asked=True)
    daemon.post("/runs", {"name": "demo"})
    daemon.wait("demo", lambda run: run["step"] == 7)
    page = open_page("about:blank")
    kept: dict[bool, Any] = {}

    def stale(route: Any) -> None:
        where = route.request.url.endswith("/progress")  # by name at first, by id later
        if where not in kept:
            kept[where] = route.fetch().json()
        route.fulfill(json=kept[where])

    page.route(re.compile(r"/v1/runs/[^/]+(/progress)?$"), stale)
    page.goto(f"{daemon.url}/#/runs/demo")
    tile = page.locator(".stats [data-key=checkpoint]")
    tile.get_by_text("none yet").wait_for()
    page.locator(".live[data-status=live]").wait_for()
    daemon.post("/runs/demo/checkpoints")
    tile.get_by_text("7", exact=True).wait_for()


# --- the live end and the time axis ---------------------------------------------------------------


def test_the_live_end_of_a_binned_curve_is_no_single_step(
    stub_url: str, open_page: OpenPage
) -> None:
    """A step of loss 9.9 among bins of 128 steps would be a spike that is not there."""
    page = open_page("about:blank")
    now = httpx.get(f"{stub_url}/v1/runs/rtx4070-d12-200k/progress").json()
    live = now | {"step": now["step"] + 900, "loss": 9.9, "loss_smooth": 9.9}
    live["last_step_at"] = time.time()
    said = [""]
    page.route(
        re.compile(r"/events$"),
        lambda route: route.fulfill(content_type="text/event-stream", body=said[0]),
    )
    page.goto(f"{stub_url}/{RUN}")
    page.locator(".chart-status", has_text="per point").wait_for()
    said[0] = f"event: progress\ndata: {json.dumps(live)}\n\n"
    page.locator(".run-progress .bar-steps", has_text=f"{live['step']:,}").wait_for()
    read = page.locator("section.chart[aria-label=Loss] .readout").inner_text()
    assert "raw" in read
    assert "9.9" not in read


@pytest.mark.parametrize("mode", ["time", "training"])
def test_a_night_of_pause_is_a_gap_on_the_time_axis_and_nothing_in_training_time(
    stub_url: str, open_page: OpenPage, mode: str
) -> None:
    page = probed(open_page)

    def sleep(answer: Answer) -> None:
        steps = answer.get("steps", [])
        after = [NIGHT_SECONDS * (step >= 86_000) for step in steps]
        if steps:
            times = answer["unix_seconds"]
            answer["unix_seconds"] = [t + more for t, more in zip(times, after, strict=True)]
        for series in answer["series"]:
            for point in series.get("points", []):
                point[1] += NIGHT_SECONDS * (point[0] >= 86_000)

    changed(page, r"/metrics\?", sleep)
    page.goto(f"{stub_url}/{RUN}?x={mode}")
    page.locator(".chart-status", has_text="per point").wait_for()
    until(page, "probedChart('Loss').lines.length > 1")
    seen, columns = probe.chart(page, "Loss"), probe.inked(page, "line-1", "Loss")
    assert columns[-1] - columns[0] > 0.8 * seen["width"]
    gap = max(b - a for a, b in itertools.pairwise(columns)) / seen["width"]
    assert gap > 0.2 if mode == "time" else gap < 0.02, "a line through the night, or a hole"
    if mode == "time":
        ends, begins = max(itertools.pairwise(columns), key=lambda pair: pair[1] - pair[0])
        # at the top and the foot of the plot, a dashed line and a mark where an attempt begins
        crash = page.evaluate("probedColour('bad')")
        marks = [m["points"] for m in seen["marks"] if m["colour"] == crash]
        at = [x for points in marks for x, *_ in points if ends + 9 < x < begins - 9]
        assert at == [], "an attempt that begins in the middle of the pause"
    ticks = [t for t in seen["texts"] if t["y"] > seen["height"] - 25]
    assert len(ticks) > 2
    assert all(t["left"] >= 0 and t["right"] <= seen["width"] for t in ticks), "clipped"
    hours = r"\d\d:\d\d|\d\d-\d\d \d\d:\d\d|\d{4}-\d\d-\d\d"
    spent = r"0|\d+ h|\d+ d( \d\d h)?"  # whole hours and days
    for tick in ticks:
        assert re.fullmatch(hours if mode == "time" else spent, tick["text"]), tick


# --- one number ----------------------------------------------------------------------------------


def test_the_time_left_is_one_number_on_the_run_in_the_list_and_for_prometheus(
    make_daemon: MakeDaemon, open_page: OpenPage
) -> None:
    daemon = make_daemon(hold_at=30)
    daemon.post("/runs", {"name": "demo", "horizon": {"steps": 400_000}})
    daemon.wait("demo", lambda run: run["step"] == 30)
    page, listed = open_page(f"{daemon.url}/#/runs/demo"), open_page(f"{daemon.url}/")
    tile = page.locator(".stats [data-key=eta] dd").first.inner_text()
    assert re.fullmatch(r"\d+ h \d\d min", tile)
    cell = listed.locator("td.col-eta")
    cell.get_by_text(tile, exact=True).wait_for()
    (summary,) = httpx.get(f"{daemon.url}/v1/runs").json()["data"]
    left = httpx.get(f"{daemon.url}/v1/runs/demo/progress").json()["eta_seconds"]
    assert summary["eta_seconds"] == pytest.approx(left, rel=0.005), "the list has its own formula"
    scraped = httpx.get(f"{daemon.url}/metrics").text
    (done_at,) = re.findall(r'^traind_eta_timestamp_seconds\{run="demo"\} (\S+)', scraped, re.M)
    hours, minutes = map(int, re.findall(r"\d+", tile))
    assert float(done_at) - time.time() == pytest.approx(3600 * hours + 60 * minutes, abs=120)


def test_the_preview_of_an_extend_goes_by_the_measured_rate_and_the_run_says_what_it_took(
    make_daemon: MakeDaemon, open_page: OpenPage
) -> None:
    daemon = make_daemon()
    daemon.post("/runs", {"name": "demo", "horizon": {"steps": 20}})
    daemon.wait("demo", lambda run: run["state"] == "completed")
    page = open_page(f"{daemon.url}/#/runs/demo")
    page.locator(".stats [data-key=eta] dt", has_text="Took").wait_for()
    page.get_by_role("button", name="Extend", exact=True).click()
    measured = 4096 / 0.02  # what each step of this trainer reports
    page.get_by_text(f"at {measured:,.0f} tok/s, this attempt's last steps").wait_for()


@pytest.mark.parametrize("name", ["sweep-009", "nanochat-d20-oom"])
def test_a_run_that_has_ended_says_what_it_took_and_not_what_is_left(
    stub_url: str, open_page: OpenPage, name: str
) -> None:
    page = open_page("about:blank")
    guess = {"eta_seconds": 20.8}  # what the present rate would make of the rest
    changed(page, rf"/v1/runs/{name}/progress$", lambda progress: progress.update(guess))
    page.goto(f"{stub_url}/#/runs/{name}")
    tile = page.locator(".stats [data-key=eta]")
    tile.locator("dt", has_text="Took").wait_for()
    assert "20.8" not in tile.inner_text()


def test_lists_and_comparisons_rank_by_the_smoothed_loss(
    stub_url: str, open_page: OpenPage
) -> None:
    """The raw loss of one step would put them the other way round."""
    page = open_page("about:blank")
    named = {"sweep-012": (3.9, 2.1), "sweep-013": (1.1, 2.2)}  # (raw, smoothed)

    def spread(answer: Answer) -> None:
        for run in answer.get("data", [answer]):
            if run.get("name") in named:
                run["loss"], run["loss_smooth"] = named[run["name"]]

    changed(page, r"/v1/runs(\?.*|/sweep-01\d)?$", spread)
    page.goto(f"{stub_url}/")
    page.get_by_label("Search runs").fill("sweep-01")
    page.get_by_role("button", name="Loss", exact=True).click()
    until(page, "document.querySelectorAll('tbody tr').length === 10")
    until(page, "document.querySelector('tbody .run-name').innerText === 'sweep-012'")
    assert page.locator("td.col-loss").all_inner_texts()[:2] == ["2.1000", "2.2000"]
    page.goto(f"{stub_url}/#/compare?keys=loss_smooth&runs=sweep-012,sweep-013")
    page.locator("tbody tr", has_text="sweep-012").get_by_text("2.1000", exact=True).wait_for()


def test_the_report_as_a_page_cuts_no_label_and_writes_numbers_for_people(
    tmp_path: Path, open_page: OpenPage
) -> None:
    with closing(Database.open(Settings(data_dir=tmp_path, port=0))) as db:
        run_id = reference_run.create(db)
        with db.read() as session:
            run = run_views.get_run(session, run_id)
            text = report.html(report.summary(session, run, now=run.last_step_at or 1.0))
    (tmp_path / "report.html").write_text(text)
    page = open_page(f"file://{tmp_path}/report.html")
    cut = page.evaluate(
        "[...document.querySelectorAll('svg text')].filter((t) => {"
        " const [own, frame] = [t, t.closest('svg')].map((e) => e.getBoundingClientRect());"
        " return own.left < frame.left - 0.5 || own.right > frame.right + 0.5; })"
        ".map((t) => t.textContent)"
    )
    assert page.locator("svg text").count() > 10
    assert cut == []
    shown = page.locator("body").inner_text()
    assert re.findall(r"\d\.?\d*e[+-]\d+|\d{9,}(?:\.\d+)?", shown) == []


# --- charts --------------------------------------------------------------------------------------


def test_read_outs_keep_their_values_after_a_brush(stub_url: str, open_page: OpenPage) -> None:
    """The smoothed loss is missing in parts of the range, CORE in all of it."""

    def cut(answer: Answer) -> None:
        column = next(s["mean"] for s in answer["series"] if s["key"] == "loss_smooth")
        half = len(column) // 2
        column[half:] = [None] * (len(column) - half)
        column[half - 1], column[-8] = 1.2345, 2.3456

    page = probed(open_page)
    changed(page, r"/metrics\?.*to_step=\d+", cut)
    page.goto(f"{stub_url}/{RUN}")
    page.locator(".chart-status", has_text="per point").wait_for()
    stage = page.locator(".chart-stage").first
    core = page.get_by_role("region", name="CORE", exact=True).locator(".readout")
    core.get_by_text(re.compile(r"\d")).wait_for()
    last_core = core.locator("dd").inner_text()
    box = stage.bounding_box()
    with page.expect_response(re.compile(r"/metrics\?.*to_step=\d+")):
        page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 80)
        page.mouse.down()
        page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 80, steps=4)
        page.mouse.up()
    until(page, "location.hash.includes('from=')")  # the pointer stays where the brush ended
    finer = re.compile(r"(?<!\d)(2|4|8|16|32) per point")
    page.locator(".chart-status", has_text=finer).wait_for()
    without = (
        "[...document.querySelectorAll('.chart')].filter((c) => c.ariaLabel !== 'Validation')"
        ".flatMap((c) => [...c.querySelectorAll('.readout dd')].filter((d) =>"
        " d.innerText.startsWith('–')).map(() => c.ariaLabel))"
    )
    smoothed = page.get_by_role("region", name="Loss", exact=True).locator(".readout div").last
    until(page, f"({without}).length === 0")
    smoothed.get_by_text("1.2345", exact=True).wait_for()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 80)
    stage.locator(".chart-tip dd").get_by_text("1.2345", exact=True).wait_for()
    stage.press("ArrowLeft")
    until(page, "document.querySelector('.chart-stage').ariaLabel.endsWith('smoothed 1.2345')")
    page.mouse.move(0, 0)  # now the last value in view, or else the last there is
    smoothed.get_by_text("2.3456", exact=True).wait_for()
    core.get_by_text(last_core, exact=True).wait_for()


@pytest.mark.parametrize("place", ["#/compare?runs=sweep-010,sweep-011", RUN, "#/groups/ladder"])
def test_each_chart_ends_within_its_card(stub_url: str, open_page: OpenPage, place: str) -> None:
    """Also beside charts whose read-outs arrive in the same frame."""
    page = probed(open_page)
    page.goto(f"{stub_url}/{place}")
    page.locator(".readout dd", has_text=re.compile(r"\d")).first.wait_for()
    settled(page)
    too_large = (
        "[...document.querySelectorAll('.chart:has(canvas)')].filter((c) => ['right', 'bottom']"
        ".some((side) => c.querySelector('canvas').getBoundingClientRect()[side]"
        " > c.querySelector('.chart-stage').getBoundingClientRect()[side] + 1))"
    )
    until(page, f"{too_large}.length === 0")


def test_curves_are_drawn_between_pixels_and_a_log_scale_can_be_read(
    stub_url: str, open_page: OpenPage
) -> None:
    page = probed(open_page)
    page.goto(f"{stub_url}/{RUN}?y=log")
    page.locator(".chart-status", has_text="per point").wait_for()
    until(page, "probedChart('Loss').lines.length > 1")
    line, *_ = probe.lines(page, "line-1", "Loss")
    heights = [y for _, y, _ in line["points"]]
    between = [y for y in heights if abs(y - round(y)) > 0.05]
    assert len(between) > len(heights) / 3, "snapped to whole pixels"
    seen = probe.chart(page, "Loss")
    ticks = [t["text"] for t in seen["texts"] if t["y"] < seen["height"] - 30 and t["text"]]
    assert len([t for t in ticks if re.fullmatch(r"\d+(\.\d+)?", t)]) >= 3, ticks


@pytest.mark.parametrize("width", [390, 3840])
def test_no_label_of_a_chart_is_cut_on_a_phone_or_a_wall(
    stub_url: str, open_page: OpenPage, width: int
) -> None:
    page = probed(open_page, width=width, height=900)
    page.goto(f"{stub_url}/{RUN}")
    page.locator(".chart-status", has_text="per point").wait_for()
    for title in ("Loss", "Learning rate", "Momentum and weight decay"):
        until(page, f"probedChart({title!r}).texts.length > 4")
        seen = probe.chart(page, title)
        cut = [t for t in seen["texts"] if t["left"] < 0 or t["right"] > seen["width"]]
        assert cut == [], title
    readouts = (
        "[...document.querySelectorAll('.readout')].filter((r) => r.scrollWidth > r.clientWidth)"
        ".map((r) => r.closest('.chart').ariaLabel)"
    )
    assert page.evaluate(readouts) == []
