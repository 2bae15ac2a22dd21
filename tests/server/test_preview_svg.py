"""The picture of an extend: what it shows, over HTTP and as a file, and that it is harmless."""

from __future__ import annotations

import itertools
import re
import struct
from xml.etree import ElementTree

import pytest

from server.reporting import png, preview
from tests.server.asgi import Asgi
from tests.server.test_cli_text import HOSTILE, reference

SVG = {"Accept": "image/svg+xml"}
NS = "{http://www.w3.org/2000/svg}"
EXTEND = "/v1/runs/demo/extend"


def parsed(text: str) -> ElementTree.Element:
    root = ElementTree.fromstring(text)
    assert root.tag == f"{NS}svg"
    return root


def words(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{NS}text")]


def polyline(root: ElementTree.Element, style: str) -> list[tuple[float, float]]:
    [line] = [e for e in root.iter(f"{NS}polyline") if e.get("class") == style]
    pairs = [pair.split(",") for pair in line.attrib["points"].split()]
    return [(float(x), float(y)) for x, y in pairs]


def mark_x(root: ElementTree.Element, style: str) -> list[float]:
    return [float(e.attrib["x1"]) for e in root.iter(f"{NS}line") if e.get("class") == style]


# --- the picture ---------------------------------------------------------------------------------


def test_both_curves_meet_at_the_joint_of_the_reference_run():
    root = parsed(preview.svg("demo", reference(schedule={"rewarm_steps": 0})))
    before, after = polyline(root, "present"), polyline(root, "new")
    assert len(before) == len(after) == 200
    for (x0, _), (x1, _) in itertools.pairwise(before + after):
        assert x0 <= x1
    [joint] = mark_x(root, "joint")
    assert before[-1][0] == after[0][0] == joint
    low, high = (float(c.attrib["cy"]) for c in root.iter(f"{NS}circle"))
    assert (before[-1][1], after[0][1]) == (low, high)
    bottom, top = 340 - 22, preview.TOP
    assert (bottom - high) / (bottom - low) == pytest.approx(0.5615 / 0.05, rel=0.01)
    assert min(y for _, y in before) == top
    assert "joint at step 130,000: 0.05 to 0.5615" in words(root)


def test_the_warmdown_is_marked_also_before_the_joint_and_not_where_there_is_none():
    root = parsed(preview.svg("demo", reference()))
    [joint], [warmdown] = mark_x(root, "joint"), mark_x(root, "warmdown")
    left, right = 56.0, 720.0 - 16
    assert warmdown == pytest.approx(left + (right - left) * 70_000 / 200_000, abs=0.1)
    assert warmdown < joint
    assert "warmdown from step 70,000" in words(root)
    held = parsed(preview.svg("demo", reference(schedule={"mode": "hold"})))
    assert mark_x(held, "warmdown") == []
    assert "There is no warmdown." in (held.findtext(f"{NS}desc") or "")


@pytest.mark.parametrize("mode", ["replan", "hold", "rewarm", "decay"])
def test_everything_lies_inside_the_picture(mode: str):
    schedule = {"mode": mode} | ({"peak_frac": 10} if mode == "rewarm" else {})
    root = parsed(preview.svg("demo", reference(schedule=schedule)))
    for x, y in polyline(root, "present") + polyline(root, "new"):
        assert 56 <= x <= 704
        assert preview.TOP <= y <= 318


def test_a_screen_reader_gets_title_and_description():
    shown = reference(schedule={"rewarm_steps": 0})
    root = parsed(preview.svg("demo", shown))
    assert root.get("role") == "img"
    named = {e.get("id"): e.text or "" for e in root}
    title, desc = (named[ref] for ref in root.attrib["aria-labelledby"].split())
    assert title == "demo: learning rate"
    assert "from step 130,000 to 200,000" in desc
    assert "from 0.05 to 0.5615 of its peak" in desc
    assert all(warning in desc for warning in shown.warnings)
    assert len(shown.warnings) > 1


def test_light_and_dark_colour_the_same_things():
    light, _, dark = preview.STYLE.partition("@media(prefers-color-scheme:dark)")
    for style in (".paper", "text", ".name", ".grid", ".present", ".new", "line.joint", "circle"):
        rule = re.compile(rf"(^|[}},{{\n]){re.escape(style)}[,{{]")
        assert rule.search(light), style
        assert rule.search(dark), style


@pytest.mark.parametrize(
    "name", [HOSTILE, "</title><script>alert(1)</script>", "&amp;\"'<![CDATA[", "\ud800\uffff\x00"]
)
def test_f54_an_odd_name_stays_text(name: str):
    for shown in (reference(), None):
        text = preview.svg(name, shown)
        root = parsed(text.encode().decode())
        title = root.findtext(f"{NS}title") or ""
        assert title == "".join(c if c.isprintable() else " " for c in f"{name}: learning rate")
        tags = {element.tag.removeprefix(NS) for element in root.iter()}
        assert tags <= {
            "svg", "title", "desc", "style", "rect", "text", "line", "polyline", "circle",
        }  # fmt: skip
        assert not re.search(r"url\(|@import|href", preview.STYLE)
        assert not any(
            key.startswith("on") or "href" in key
            for element in root.iter()
            for key in element.attrib
        )


# --- over HTTP -----------------------------------------------------------------------------------


def test_a_dry_run_answers_the_picture_and_changes_nothing(asgi: Asgi):
    asgi.create(start=False)
    answer = asgi.post(f"{EXTEND}?dry_run=true", {"to_step": 300}, headers=SVG)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/svg+xml"
    assert "Accept" in answer.headers["vary"].split(", ")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    root = parsed(answer.text)
    assert root.findtext(f"{NS}title") == "demo: learning rate"
    assert any(said.startswith("joint at step 200:") for said in words(root))
    assert asgi.get("/v1/runs/demo").json()["end_step"] == 200


def test_the_plan_of_an_extend_answers_the_same_picture(asgi: Asgi):
    asgi.create(start=False)
    dry = asgi.post(f"{EXTEND}?dry_run=true", {"to_step": 300}, headers=SVG)
    body = {"run": "demo", "extend": {"to_step": 300}}
    planned = asgi.post("/v1/plan", body, headers=SVG)
    assert planned.headers["content-type"] == "image/svg+xml"
    assert planned.text == dry.text


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "application/json"),
        ("application/json, image/svg+xml;q=0.5", "application/json"),
        ("image/*", "image/svg+xml"),
        ("image/svg+xml, */*;q=0.1", "image/svg+xml"),
        ("image/png", "image/png"),
        ("image/svg+xml;q=0.5, image/png", "image/png"),
    ],
)
def test_json_unless_the_picture_is_liked_better(asgi: Asgi, accept: str, kind: str):
    asgi.create(start=False)
    headers = {"Accept": accept}
    answer = asgi.post(f"{EXTEND}?dry_run=true", {"to_step": 300}, headers=headers)
    assert answer.headers["content-type"] == kind


@pytest.mark.parametrize(
    ("path", "body", "accept"),
    [
        (EXTEND, {"to_step": 300}, "image/svg+xml"),
        (EXTEND, {"to_step": 300}, "image/*"),
        (f"{EXTEND}?dry_run=true", {"to_step": 300}, "image/webp"),
        ("/v1/plan", {"name": "x"}, "image/svg+xml"),
        ("/v1/plan", {"run": "demo", "extend": {"to_step": 300}}, "image/webp"),
    ],
)
def test_what_is_not_offered_is_refused_before_anything_is_done(
    asgi: Asgi, path: str, body: dict[str, object], accept: str
):
    asgi.create(start=False)
    answer = asgi.post(path, body, headers={"Accept": accept})
    assert answer.status_code == 406, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert asgi.get("/v1/runs/demo").json()["end_step"] == 200


def test_a_refused_extend_is_a_problem_and_no_picture(asgi: Asgi):
    asgi.create(start=False)
    answer = asgi.post(f"{EXTEND}?dry_run=true", {"to_step": 10}, headers=SVG)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"


def test_an_extend_that_changes_nothing_is_said_in_the_picture(asgi: Asgi):
    asgi.create(start=False)
    for path, body in (
        (f"{EXTEND}?dry_run=true", {"to_step": 200}),
        ("/v1/plan", {"run": "demo", "extend": {"to_step": 200}}),
    ):
        answer = asgi.post(path, body, headers=SVG)
        assert answer.status_code == 200
        assert preview.NOTHING in words(parsed(answer.text))


def test_the_picture_as_a_png_has_its_words_though_no_font_is_installed(asgi: Asgi):
    asgi.create(start=False)
    ask = (f"{EXTEND}?dry_run=true", {"to_step": 300})
    answer = asgi.post(*ask, headers={"Accept": "image/png"})
    assert answer.content[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", answer.content[16:24]) == (1440, 680)
    svg = asgi.post(*ask, headers=SVG).text
    assert answer.content == png.render(svg)
    wordless = png.render(re.sub("<text.*?</text>", "", svg))
    assert len(wordless) < 0.8 * len(answer.content)


def test_a_png_is_not_offered_without_its_library(asgi: Asgi, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(png, "is_possible", lambda: False)
    asgi.create(start=False)
    ask = (f"{EXTEND}?dry_run=true", {"to_step": 300})
    answer = asgi.post(*ask, headers={"Accept": "image/png"})
    assert answer.status_code == 406
    assert "image/svg+xml" in answer.json()["detail"]
    assert asgi.post(*ask, headers={"Accept": "image/*"}).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (f"{EXTEND}?dry_run=true", {"to_step": 300}),
        ("/v1/plan", {"run": "demo", "extend": {"to_step": 300}}),
    ],
)
def test_a_key_keeps_what_is_said_and_accept_its_form(
    asgi: Asgi, path: str, body: dict[str, object]
):
    asgi.create(start=False)
    key = {"Idempotency-Key": "k"}
    first = asgi.post(path, body, headers=SVG | key)
    asgi.post(EXTEND, {"to_step": 400})
    again = asgi.post(path, body, headers=SVG | key)
    assert again.headers["idempotent-replayed"] == "true"
    assert again.text == first.text
    told = asgi.post(path, body, headers=key)
    assert told.headers["content-type"] == "application/json"
    shown = told.json().get("plan") or told.json()["extend"]
    assert shown["start_step"] == 200


def test_the_document_offers_the_picture(asgi: Asgi):
    paths = asgi.get("/openapi.json").json()["paths"]
    for path in ("/v1/runs/{run}/extend", "/v1/plan"):
        responses = paths[path]["post"]["responses"]
        content = responses["200"]["content"]
        assert {"application/json", "image/svg+xml", "image/png"} == content.keys()
        assert content["application/json"]["schema"]
        assert "406" in responses
