"""The queue and the groups in a real browser: order, priorities and hours; a ladder on one page."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

from tests.e2e import canvas_probe as probe
from tests.e2e.conftest import WHEN, Daemon, OpenPage, until

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
    assert asked.value.post_data_json == {"hours": [rule], "neighbours": None}
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
    page.get_by_label("Runs make way for other programs on this device").check()
    page.get_by_label("Always for").fill("blender")
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
    page.get_by_text("No hours: it never trains.").wait_for()
    page.get_by_role("button", name="Save").click()
    page.get_by_text(
        re.compile(rf"^Paused by its hours at {WHEN}, comes back by itself\.$")
    ).wait_for()
    spec = daemon.run("demo")["spec"]
    assert (spec["priority"], spec["hours"]) == (5, [])
    page.goto(f"{daemon.url}/#/queue")
    page.locator(".waiting .card", has_text="demo").get_by_text("Outside its hours").wait_for()
    page.get_by_role("button", name="Hours of demo").click()
    page.get_by_role("radio", name="Always").check(force=True)
    page.get_by_role("button", name="Save").click()
    page.get_by_text("Nothing waits.").wait_for()
    page.goto(f"{daemon.url}/#/runs/demo")
    back = re.compile(rf"^Paused by its hours at {WHEN}, back at {WHEN}\.$")
    page.get_by_text(back).wait_for()
    page.locator(".edge", has_text="attempt 2: paused by its hours at").wait_for()


def test_a_group_is_made_from_the_form_or_json_and_compared(
    stub_url: str, open_page: OpenPage
) -> None:
    page = open_page("about:blank")
    page.add_init_script(probe.INSTALL)
    page.goto(f"{stub_url}/#/groups")
    page.locator("tr", has_text="ladder").get_by_text("6 completed").wait_for()
    page.get_by_text("New group").click()
    page.get_by_label("Name", exact=True).fill("widths")
    page.get_by_label("Depths of a ladder").fill("4 6 8")
    page.get_by_label("Seeds of each").fill("2")
    page.get_by_text("6 runs, queued behind what runs").wait_for()
    page.get_by_role("radio", name="JSON").check(force=True)
    body = {"name": "widths", "base": {}, "depths": [4, 6, 8], "repeats": 2}
    written = page.get_by_label("The group as JSON")
    assert json.loads(written.input_value()) == body
    with page.expect_request(lambda request: request.method == "POST") as asked:
        page.get_by_role("button", name="Create the group").click()
    assert asked.value.post_data_json == body
    page.get_by_role("heading", name="widths").wait_for()
    page.locator("tr", has_text="depth 6").get_by_text("beyond the noise").wait_for()
    page.get_by_text("runs that differ by their seed alone lie 0.0021 apart").wait_for()
    fit = page.get_by_role("region", name="Fit of base")
    fit.get_by_text("0.9020 to 0.9190 at 95 %").wait_for()
    until(page, "probedChart('Loss, smoothed')?.lines.length === 6")
    assert len({line["colour"] for line in probe.chart(page, "Loss, smoothed")["lines"]}) == 3
    quality = probe.chart(page, "Val bpb")
    assert [line["dash"] for line in quality["lines"]].count(True) == 1, "the fit"
