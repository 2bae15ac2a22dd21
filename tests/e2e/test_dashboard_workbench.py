"""What one works with on the page: charts that zoom, pan, move, hide and are saved; smoothing;
comparisons; and actions that follow the state."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.e2e import canvas_probe as probe
from tests.e2e.conftest import Daemon, OpenPage, settled, until

pytestmark = [pytest.mark.needs("browser"), pytest.mark.timeout(180)]
RUN = "#/runs/rtx4070-d12-200k"
SVG = "{http://www.w3.org/2000/svg}"
ZOOMED = "location.hash.includes('from=')"


def drawn(page: Any) -> None:
    page.locator(".chart-status", has_text="per point").wait_for()


def button(page: Any, name: str) -> Any:
    return page.get_by_role("button", name=name, exact=True)


def entry(page: Any, menu: str, name: str) -> Any:
    """An entry of a menu, ticked or not, after it is opened."""
    button(page, menu).click()
    return page.locator(".menu:not([hidden]) button", has_text=name)


def zoom(page: Any) -> tuple[int, int]:
    query = re.search(r"from=(\d+)&to=(\d+)", page.url)
    assert query, page.url
    return int(query[1]), int(query[2])


def titles(page: Any) -> list[str]:
    return page.evaluate("[...document.querySelectorAll('.charts > .chart')].map(c => c.ariaLabel)")


def test_a_chart_is_zoomed_panned_and_reset_by_the_mouse(
    stub_url: str, open_page: OpenPage
) -> None:
    page = open_page(f"{stub_url}/{RUN}")
    drawn(page)
    box = page.locator(".chart-stage").first.bounding_box()
    at = lambda part: (box["x"] + part * box["width"], box["y"] + 80)  # noqa: E731

    def drag(begin: float, end: float) -> None:
        page.mouse.move(*at(begin))
        page.mouse.down()
        page.mouse.move(*at(end), steps=5)
        page.mouse.up()

    drag(0.4, 0.6)
    until(page, ZOOMED)
    low, high = zoom(page)
    assert 40_000 < low < high < 100_000
    page.keyboard.down("Shift")
    drag(0.6, 0.5)
    page.keyboard.up("Shift")
    until(page, f"!location.hash.includes('from={low}&')")
    moved_low, moved_high = zoom(page)
    assert moved_low > low
    assert abs((moved_high - moved_low) - (high - low)) <= 2, "a pan keeps the width"
    page.mouse.dblclick(*at(0.5))
    until(page, f"!{ZOOMED}")
    page.locator(".chart-stage").first.focus()
    page.mouse.move(*at(0.25))
    page.mouse.wheel(0, -240)
    until(page, ZOOMED)
    low, high = zoom(page)
    assert low > 0
    assert high < 143_210
    assert (low + high) / 2 < 70_000, "around the pointer, not the middle"


def test_a_pan_stops_at_the_edge_and_keeps_the_width(stub_url: str, open_page: OpenPage) -> None:
    def pan(page: Any, share: float) -> None:
        drawn(page)
        box = page.locator(".chart-stage").first.bounding_box()
        page.keyboard.down("Shift")
        page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 80)
        page.mouse.down()
        page.mouse.move(box["x"] + (0.3 + share) * box["width"], box["y"] + 80, steps=5)
        page.mouse.up()
        page.keyboard.up("Shift")

    whole = open_page(f"{stub_url}/{RUN}")
    pan(whole, 0.3)
    assert not whole.evaluate(ZOOMED), "all of it is shown: there is nothing to the left"
    part = open_page(f"{stub_url}/{RUN}?from=5000&to=25000")
    pan(part, 0.5)
    until(part, "location.hash.includes('from=0&')")
    assert zoom(part) == (0, 20_000)


def test_the_tools_of_the_charts_are_one_row_on_a_laptop(
    stub_url: str, open_page: OpenPage
) -> None:
    page = open_page(f"{stub_url}/{RUN}", width=1280)
    drawn(page)
    tools = page.locator(".chart-tools")
    middles = tools.locator("> :not(.spring)").evaluate_all(
        "all => all.map(e => e.getBoundingClientRect()).map(b => b.top + b.height / 2)"
    )
    assert len(middles) >= 4
    assert max(middles) - min(middles) < 8


def test_panels_are_moved_hidden_maximised_set_to_a_log_scale_and_stay_so(
    stub_url: str, open_page: OpenPage
) -> None:
    page = open_page(f"{stub_url}/{RUN}")
    drawn(page)
    first = titles(page)
    entry(page, "Learning rate: more", "Move right").click()
    until(page, f"document.querySelectorAll('.charts > .chart')[1].ariaLabel === {first[2]!r}")
    entry(page, "Gradient norm: more", "Hide").click()
    page.locator("section.chart[aria-label='Gradient norm']").wait_for(state="detached")
    entry(page, "Throughput: more", "Logarithmic").first.click()
    entry(page, "Throughput: more", "Maximise").click()
    big = page.locator("section.chart.maximised[aria-label=Throughput]")
    big.wait_for()
    assert big.bounding_box()["width"] > 1100
    page.keyboard.press("Escape")
    big.wait_for(state="detached")
    page.reload()
    drawn(page)
    assert titles(page) == [
        first[0],
        first[2],
        first[1],
        *[t for t in first[3:] if t != "Gradient norm"],
    ]
    assert "✓" in entry(page, "Throughput: more", "Logarithmic").first.inner_text()
    page.keyboard.press("Escape")
    entry(page, "Panels", "Reset").click()
    until(page, f"document.querySelectorAll('.charts > .chart').length === {len(first)}")
    assert titles(page) == first


def test_a_chart_is_saved_as_a_picture(stub_url: str, open_page: OpenPage) -> None:
    page = open_page(f"{stub_url}/{RUN}")
    drawn(page)
    with page.expect_download() as png:
        entry(page, "Loss: more", "Save as PNG").click()
    assert png.value.suggested_filename == "rtx4070-d12-200k-loss.png"
    assert Path(png.value.path()).read_bytes().startswith(b"\x89PNG\r\n")
    with page.expect_download() as svg:
        entry(page, "Loss: more", "Save as SVG").click()
    picture = ElementTree.fromstring(Path(svg.value.path()).read_text())
    words = [text.text for text in picture.iter(f"{SVG}text")]
    assert words[:3] == ["Loss", "raw", "smoothed"]
    assert "100,000" in words, "ticks"
    longest = max(len(path.get("d") or "") for path in picture.iter(f"{SVG}path"))
    assert longest > 2000, "the curve itself"


def test_what_is_shown_is_downloaded_with_a_column_for_each_key(
    make_daemon: Callable[..., Daemon], open_page: OpenPage
) -> None:
    daemon = make_daemon()
    daemon.post("/runs", {"name": "demo", "horizon": {"steps": 30}})
    daemon.wait("demo", lambda run: run["state"] == "completed")
    page = open_page(f"{daemon.url}/#/runs/demo")
    page.locator(".chart-status", has_text="30 steps").wait_for()
    with page.expect_download() as loaded:
        entry(page, "Download", "CSV").first.click()
    assert loaded.value.suggested_filename == "demo-metrics.csv"
    rows = list(csv.DictReader(Path(loaded.value.path()).read_text().splitlines()))
    assert [int(row["step"]) for row in rows] == list(range(30))
    assert float(rows[7]["loss"]) == 5 - 7 / 1000
    assert float(rows[7]["momentum"]) == 0.9


def test_the_smoothing_slider_draws_an_average_over_each_noisy_curve(
    stub_url: str, open_page: OpenPage
) -> None:
    page = open_page("about:blank")
    page.add_init_script(probe.INSTALL)
    page.goto(f"{stub_url}/{RUN}")
    drawn(page)
    until(page, "probedChart('Throughput')?.lines.length === 1")
    (raw,) = probe.lines(page, "line-3", "Throughput")
    page.get_by_label("Smoothing").fill("0.95")
    page.locator("output", has_text="0.95").wait_for()
    until(page, "probedChart('Throughput').lines.length === 2")
    travel = [
        sum(abs(b[1] - a[1]) for a, b in zip(line["points"], line["points"][1:], strict=False))
        for line in probe.chart(page, "Throughput")["lines"]
    ]
    assert min(travel) < 0.3 * max(travel), "the average is the calmer one"
    assert raw["points"]
    page.reload()
    drawn(page)
    assert page.get_by_label("Smoothing").input_value() == "0.95"


def test_a_comparison_names_what_differs_and_its_link_holds_the_view(
    stub_url: str, open_page: OpenPage
) -> None:
    page = open_page(f"{stub_url}/#/compare?keys=loss_smooth&runs=sweep-010,sweep-011")
    table = page.get_by_role("region", name="Settings that differ")
    table.locator("tr", has_text="optimizer.matrix_lr").wait_for()
    assert table.locator("tbody tr").count() == 1, "what is the same is left out"
    page.get_by_role("radio", name="FLOPs", exact=True).check(force=True)
    page.get_by_role("radio", name="Log", exact=True).check(force=True)
    page.get_by_role("button", name="Leave out sweep-011").click()
    until(page, "location.hash.includes('x=flops') && location.hash.includes('y=log')")
    held = page.url
    page.goto("about:blank")
    page.goto(held)
    page.locator(".compare-charts dt", has_text="sweep-010").wait_for()
    assert page.locator("input[value=flops]:checked, input[value=log]:checked").count() == 2
    assert page.get_by_role("button", name="Leave out sweep-011").count() == 0


def test_a_comparison_that_shows_all_is_zoomed_by_the_keyboard(
    stub_url: str, open_page: OpenPage
) -> None:
    page = open_page(f"{stub_url}/#/compare?keys=loss_smooth&runs=sweep-009,sweep-010")
    page.locator(".compare-charts dt", has_text="sweep-010").wait_for()
    until(page, "document.querySelector('.compare-charts canvas')")
    page.locator(".compare-charts .chart-stage").first.focus()
    page.keyboard.press("+")
    until(page, ZOOMED)
    page.keyboard.press("0")
    until(page, f"!{ZOOMED}")


def test_a_completed_run_leads_with_extend_and_a_pinned_checkpoint_offers_unpin(
    stub_url: str, open_page: OpenPage
) -> None:
    page = open_page(f"{stub_url}/#/runs/sweep-009")
    settled(page)
    assert page.locator(".actions .primary:visible").all_inner_texts() == ["Extend"]
    assert page.locator(".actions > button", has_text="Resume").is_hidden()
    page.goto(f"{stub_url}/{RUN}/checkpoints")
    pinned = page.locator("tr", has_text="pinned")
    pinned.get_by_role("button", name="Unpin step 70000").wait_for()
    assert pinned.get_by_role("button", name="Delete").count() == 0
    assert page.get_by_role("button", name="Delete step 80000").count() == 1


def test_who_signed_in_can_sign_out(tmp_path: Path, open_page: OpenPage) -> None:
    daemon = Daemon(tmp_path, step_seconds=0.1, auth="always")
    page = open_page(daemon.url)
    token = daemon.token_file.read_text().strip()
    page.get_by_label("Token", exact=True).fill(token)
    button(page, "Sign in").click()
    page.get_by_role("heading", name="No runs yet").wait_for()
    button(page, "Sign out").click()
    page.get_by_text("traind token show-path").wait_for()
    page.said.clear()  # Chromium reports each 401 that was wanted
    page.context.close()
    daemon.end()
