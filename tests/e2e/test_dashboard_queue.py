"""The queue and the groups in a real browser: order, priorities and hours; a ladder on one page."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.e2e import canvas_probe as probe
from tests.e2e.conftest import WHEN, Daemon, OpenPage, until

MakeDaemon = Callable[..., Daemon]
pytestmark = [pytest.mark.needs("browser"), pytest.mark.timeout(180)]


def shown(page: Any) -> list[str]:
    return page.locator(".waiting .run-name").all_inner_texts()


def in_order(page: Any, *names: str) -> None:
    wanted = json.dumps(list(names))
    names_now = "[...document.querySelectorAll('.waiting .run-name')].map((e) => e.innerText)"
    until(page, f"JSON.stringify({names_now}) === JSON.stringify({wanted})")


def patched(route: Any) -> bool:
    return route.method == "PATCH"


def test_the_order_of_the_queue_changes_by_keyboard_by_drag_and_by_a_field(
    stub_url: str, open_page: OpenPage
) -> None:
    page = open_page(f"{stub_url}/#/queue")
    page.locator(".waiting .card").nth(2).wait_for()
    first, second, third = shown(page)
    page.get_by_text("used by steam").wait_for()
    page.get_by_text(re.compile(rf"comes first on cuda:0\. Until {WHEN}")).first.wait_for()
    page.get_by_role("button", name=f"Move {third}, place 3: arrow up or down").focus()
    with page.expect_request(patched) as asked:
        page.keyboard.press("ArrowUp")
    assert asked.value.post_data_json == {"priority": -1}, "the one it passes goes below it"
    in_order(page, first, third, second)
    until(page, f"document.activeElement.getAttribute('aria-label').startsWith('Move {third}')")
    page.locator(".waiting .card", has_text=second).drag_to(
        page.locator(".waiting .card", has_text=first)
    )
    in_order(page, second, first, third)
    page.get_by_label(f"Priority of {third}").fill("7")
    with page.expect_request(patched) as asked:
        page.keyboard.press("Enter")
    assert asked.value.post_data_json == {"priority": 7}
    in_order(page, third, second, first)


def test_the_order_of_the_queue_changes_by_touch(stub_url: str, open_page: OpenPage) -> None:
    page = open_page(f"{stub_url}/#/queue", width=390, height=844, has_touch=True, is_mobile=True)
    page.locator(".waiting .card").nth(2).wait_for()
    first, second, third = shown(page)
    handle = page.get_by_role("button", name=f"Move {third}, place 3: arrow up or down")
    target = page.locator(".waiting .card", has_text=first)
    target.scroll_into_view_if_needed()
    fingers = page.context.new_cdp_session(page)

    def touch(kind: str, *boxes: dict[str, float]) -> None:
        points = [{"x": b["x"] + b["width"] / 2, "y": b["y"] + b["height"] / 2} for b in boxes]
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", handle.bounding_box())
    touch("touchMove", target.bounding_box())
    page.locator(".waiting .card.over", has_text=first).wait_for()
    touch("touchEnd")
    in_order(page, third, first, second)


def test_hours_of_a_device_are_seen_and_changed(stub_url: str, open_page: OpenPage) -> None:
    page = open_page(f"{stub_url}/#/queue")
    page.get_by_text(re.compile(rf"^open until {WHEN}$")).wait_for()
    page.get_by_role("button", name="Hours of cuda:0").click()
    page.get_by_role("radio", name="Only in these hours").check(force=True)
    page.get_by_label("sat").uncheck()
    page.get_by_label("From", exact=True).fill("23:00")
    with page.expect_request(lambda request: request.method == "PUT") as asked:
        page.get_by_role("button", name="Save").click()
    days = ["mon", "tue", "wed", "thu", "fri", "sun"]
    rule = {"days": days, "from": "23:00", "to": "07:00", "zone": None, "price_below": None}
    assert asked.value.post_data_json == {"hours": [rule], "neighbours": None, "power": None}
    page.get_by_role("dialog").wait_for(state="detached")
    page.get_by_role("button", name="Hours of cuda:0").click()
    assert page.get_by_label("From", exact=True).input_value() == "23:00"
    assert not page.get_by_label("sat").is_checked()


def test_hours_and_neighbours_of_a_device_are_kept_by_a_daemon(
    daemon: Daemon, open_page: OpenPage
) -> None:
    page = open_page(f"{daemon.url}/#/queue")
    page.get_by_role("button", name="Hours of cpu").click()
    page.get_by_role("radio", name="Only in these hours").check(force=True)
    page.get_by_role("button", name="Remove hours 1").click()
    page.get_by_label("Yield this device to other programs").check()
    page.get_by_label("Always yield to").fill("blender")
    page.get_by_role("button", name="Save").click()
    page.get_by_role("dialog").wait_for(state="detached")
    page.locator("tr", has_text="cpu").get_by_text("closed").wait_for()
    policy = httpx.get(f"{daemon.url}/v1/devices/cpu/policy").json()
    assert policy["hours"] == []
    assert policy["neighbours"]["yield_to"] == ["blender"]


def test_priority_and_hours_of_a_run_are_changed_on_its_page(
    daemon: Daemon, open_page: OpenPage
) -> None:
    daemon.post("/runs", {"name": "demo", "horizon": {"steps": 2000}})
    daemon.wait("demo", lambda run: run["step"] >= 1)  # an attempt without a step has no edge
    page = open_page(f"{daemon.url}/#/runs/demo")
    page.get_by_role("button", name="More actions").click()
    page.get_by_role("menuitem", name="Priority and hours…").click()
    page.get_by_label("Priority, −100 to 100").fill("5")
    page.get_by_role("radio", name="Only in these hours").check(force=True)
    page.get_by_role("button", name="Remove hours 1").click()
    page.get_by_text("No hours: training never starts.").wait_for()
    page.get_by_role("button", name="Save").click()
    page.get_by_text(
        re.compile(rf"^Paused outside its hours at {WHEN}, resumes by itself\.$")
    ).wait_for()
    spec = daemon.run("demo")["spec"]
    assert (spec["priority"], spec["hours"]) == (5, [])
    page.goto(f"{daemon.url}/#/queue")
    page.locator(".waiting .card", has_text="demo").get_by_text("Outside its hours").wait_for()
    page.get_by_role("button", name="Hours of demo").click()
    page.get_by_role("radio", name="Always").check(force=True)
    page.get_by_role("button", name="Save").click()
    page.get_by_text("No run is waiting.").wait_for()
    page.goto(f"{daemon.url}/#/runs/demo")
    back = re.compile(rf"^Paused outside its hours at {WHEN}, back at {WHEN}\.$")
    page.get_by_text(back).wait_for()
    page.locator(".edge", has_text="attempt 2: paused outside its hours at").wait_for()


def test_a_group_is_made_from_the_form_or_json_and_compared(
    stub_url: str, open_page: OpenPage
) -> None:
    page = open_page("about:blank")
    page.add_init_script(probe.INSTALL)
    page.goto(f"{stub_url}/#/groups")
    page.locator("tr", has_text="ladder").get_by_text("8 completed").wait_for()
    page.get_by_text("New group").click()
    page.get_by_label("Name", exact=True).fill("widths")
    page.get_by_label("Depths of the ladder").fill("4 6 8 10")
    page.get_by_label("Seeds per variant").fill("2")
    page.get_by_label("Minutes per run").fill("30")
    page.get_by_text("8 runs, queued at low priority").wait_for()
    page.get_by_role("radio", name="JSON").check(force=True)
    body = {
        "name": "widths", "base": {}, "depths": [4, 6, 8, 10], "repeats": 2,
        "budget": {"minutes": 30},
    }  # fmt: skip
    written = page.get_by_label("The group as JSON")
    assert json.loads(written.input_value()) == body
    with page.expect_request(lambda request: request.method == "POST") as asked:
        page.get_by_role("button", name="Create the group").click()
    assert asked.value.post_data_json == body
    page.get_by_role("heading", name="widths").wait_for()
    page.locator("tr", has_text="depth 6").get_by_text("beyond the noise").wait_for()
    page.get_by_text("a standard deviation of 0.0021 bits per byte between seeds").wait_for()
    page.get_by_text("2 seeds per variant · budget per run: 30 minutes").wait_for()
    fit = page.get_by_role("region", name="Fit of base")
    fit.get_by_text("0.9020 to 0.9190 at 95 %").wait_for()
    until(page, "probedChart('Loss, smoothed')?.lines.length === 8")
    assert len({line["colour"] for line in probe.chart(page, "Loss, smoothed")["lines"]}) == 4
    quality = probe.chart(page, "Val bpb")
    assert [line["dash"] for line in quality["lines"]].count(True) == 1, "the fit"


# --- with a real daemon --------------------------------------------------------------------------


def over(daemon: Daemon, name: str, seconds: float = 150) -> dict[str, Any]:
    """The group, when none of its runs trains on by itself."""
    deadline = time.monotonic() + seconds
    while not (group := httpx.get(f"{daemon.url}/v1/groups/{name}").json())["is_over"]:
        assert time.monotonic() < deadline, group["counts"]
        time.sleep(0.2)
    return group


def test_a_ladder_of_a_daemon_is_made_compared_and_deleted_on_the_page(
    make_daemon: MakeDaemon, open_page: OpenPage
) -> None:
    daemon = make_daemon(step_seconds=0.001, bpb=0.8)
    page = open_page("about:blank")
    page.add_init_script(probe.INSTALL)
    page.goto(f"{daemon.url}/#/groups")
    page.get_by_text("No groups yet").wait_for()
    page.get_by_label("Name", exact=True).fill("ladder")
    page.get_by_label("Depths of the ladder").fill("2 3 4 5")
    page.get_by_label("Seeds per variant").fill("2")
    page.get_by_label("Minutes per run").fill("30")
    page.get_by_label("Grid: ").fill("optimizer.matrix_lr: 0.01 0.02")
    page.get_by_label("More of the base spec").fill('{"horizon": {"steps": 8}}')
    page.get_by_text("16 runs, queued at low priority").wait_for()
    page.get_by_role("button", name="Create the group").click()
    page.get_by_role("heading", name="ladder").wait_for()
    page.get_by_text(
        "depths 2, 3, 4, 5 · optimizer.matrix_lr 0.01, 0.02 · 2 seeds per variant · "
        "budget per run: 30 minutes"
    ).wait_for()
    assert over(daemon, "ladder")["counts"] == {"completed": 16}
    page.get_by_text("16 runs: 16 completed.").wait_for()
    page.get_by_text("Gains and multipliers are against optimizer.matrix_lr=0.01.").wait_for()
    better = page.locator("tr", has_text="depth 4, matrix_lr 0.02")
    better.get_by_text("beyond the noise").wait_for()
    better.get_by_text("0.0500 ± ").wait_for()
    page.get_by_text("bits per byte between seeds. Pooled over 8 degrees of freedom").wait_for()
    for rate in ("0.01", "0.02"):
        fit = page.get_by_role("region", name=f"Fit of matrix_lr {rate}")
        fit.get_by_text("8 runs; ").wait_for()
        fit.get_by_text("predicted val bpb, depth 6").wait_for()
    until(page, "probedChart('Loss, smoothed')?.lines.length === 16")
    quality = probe.chart(page, "Val bpb")
    assert [line["dash"] for line in quality["lines"]].count(True) == 2, "a fit each"
    assert page.get_by_role("button", name="Cancel all").is_disabled()
    page.get_by_role("button", name="Delete…").click()
    page.get_by_label("Also delete its runs").check()
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_text("No groups yet").wait_for()
    assert httpx.get(f"{daemon.url}/v1/runs").json()["data"] == []


def test_a_group_that_trains_is_followed_and_cancelled_and_a_spent_budget_is_named(
    make_daemon: MakeDaemon, open_page: OpenPage
) -> None:
    daemon = make_daemon(step_seconds=0.02)
    base = {"horizon": {"steps": 100_000}, "priority": 3}
    daemon.post("/groups", {"name": "g", "depths": [2], "base": base, "budget": {"tokens": 20_000}})
    daemon.wait("g-d2", lambda run: run["state"] == "paused")
    daemon.post("/groups", {"name": "long", "depths": [2, 3], "base": base})
    page = open_page(f"{daemon.url}/#/groups/g")
    page.locator("tr", has_text="g-d2").get_by_text("budget spent").wait_for()
    page.get_by_text("budget per run: 20 k tokens").wait_for()
    page.get_by_text("No fit: it needs at least 4 depths.").wait_for()
    page.goto(f"{daemon.url}/#/groups/long")
    # either of the two: the device is given to the one whose data is prepared first
    page.locator("tr", has_text="long-d").locator(".state[data-state=running]").first.wait_for()
    page.get_by_role("button", name="Cancel all").click()
    page.get_by_role("button", name="Cancel them").click()
    page.get_by_text("2 runs: 2 cancelled.").wait_for()
