"""The dashboard's pure modules, run by node: they must say what the Python says."""

from __future__ import annotations

import json
import random
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from server.domain.states import VERBS, State
from trainer.contract.schedule import (
    ExtendSchedule,
    PhaseSchedule,
    curve,
    extend_schedule,
    initial_schedule,
)
from trainer.contract.spec import PRESETS

WEB = Path(__file__).parents[2] / "server" / "web"
pytestmark = pytest.mark.needs("node")


IMPORT = re.compile(r"""^(?:import|export)\b[^"]*?"(\.[^"]+)";""", re.MULTILINE)


def in_node(script: str, given: Any) -> Any:
    """What `script` (an ES module with `given` in scope) prints as JSON."""
    text = f"const given = JSON.parse(process.argv[1]);\n{script}"
    done = subprocess.run(
        ["node", "--input-type=module", "-e", text, json.dumps(given)],
        capture_output=True, text=True, timeout=60, check=False, cwd=WEB,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def random_schedule(rng: random.Random) -> PhaseSchedule:
    """An initial curve, extended up to three times in any mode."""
    end = rng.randint(5, 300_000)
    schedule = initial_schedule(
        end, rng.randint(0, 60), rng.choice([0.0, 0.3, 0.65, 1.0]),
        rng.choice(["linear", "cosine"]), rng.choice([0.0, 0.05]),
    )  # fmt: skip
    for _ in range(rng.randint(0, 3)):
        joint = rng.randint(schedule.start_step + 1, schedule.end_step)
        ask = ExtendSchedule(
            mode=rng.choice(["replan", "hold", "rewarm", "decay"]),
            rewarm_steps=rng.choice([None, 0, 7, 500]),
            peak_frac=rng.choice([None, 0.5]),
            weight_decay=rng.choice(["curve", "keep"]),
            shape=rng.choice([None, "linear", "cosine"]),
        )
        schedule = extend_schedule(
            schedule, joint, schedule.end_step + rng.randint(1, 90_000), ask,
            warmup_steps=schedule.warmup_steps, warmdown_ratio=0.65,
        )  # fmt: skip
    return schedule


def test_the_planned_curve_is_the_trainers_curve() -> None:
    rng = random.Random(5)
    schedules = [random_schedule(rng) for _ in range(200)]
    told = in_node(
        'import { curve } from "./schedule.js";'
        "console.log(JSON.stringify(given.map((s) => curve(s, s.start_step, s.end_step, 60)"
        ".map((p) => [p.step, p.lr_multiplier, p.momentum, p.weight_decay]))));",
        [s.model_dump() for s in schedules],
    )
    for schedule, points in zip(schedules, told, strict=True):
        expected = curve(schedule, schedule.start_step, schedule.end_step, 60)
        assert [p[0] for p in points] == [p[0] for p in expected]
        for got, wanted in zip(points, expected, strict=True):
            assert got == pytest.approx(list(wanted), rel=1e-12, abs=1e-12), schedule


def test_the_page_knows_the_presets_and_offers_only_what_is_legal() -> None:
    script = """
        import { PRESETS } from "./components/spec-form.js";
        import { isLegal, STATES, VERBS } from "./verbs.js";
        const offered = STATES.map((s) => [s, Object.keys(VERBS).filter((v) => isLegal(v, s))]);
        console.log(JSON.stringify({ presets: PRESETS, offered }));
    """
    told = in_node(script, None)
    assert told["presets"] == list(PRESETS)
    assert {state for state, _ in told["offered"]} == set(State)
    for state, verbs in told["offered"]:
        assert set(verbs) - {"checkpoint", "evaluate"} <= VERBS[State(state)], state


def test_every_module_is_there_before_the_page_begins() -> None:
    """A module asked for later, while the daemon is away, would be missing for good."""
    found, waiting = set(), [WEB / "app.js"]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            text = module.read_text()
            assert "import(" not in text.replace("{import(", ""), module  # but in types
            waiting += [(module.parent / name).resolve() for name in IMPORT.findall(text)]
    page = (WEB / "index.html").read_text()
    preloaded = {WEB / name for name in re.findall(r'modulepreload" href="static/([^"]+)"', page)}
    assert preloaded | {WEB / "app.js"} == found


def test_event_streams_are_parsed_however_they_are_cut() -> None:
    stream = (
        ': hello\r\n\r\nid: 7\nevent: state\ndata: {"a":\ndata: 1}\n\n'
        'event: progress\r\ndata: {"step":2}\r\n\r\ndata: plain \u2028 text\n\nid: 9\ndata: "cut'
    )
    script = """
        import { createParser } from "./sse.js";
        const all = [];
        for (let size = 1; size < 40; size++) {
          const got = [];
          const parse = createParser((m) => got.push(m));
          for (let i = 0; i < given.length; i += size) parse(given.slice(i, i + size));
          all.push(got);
        }
        console.log(JSON.stringify(all));
    """
    expected = [
        {"event": "state", "data": {"a": 1}, "id": "7"},
        {"event": "progress", "data": {"step": 2}, "id": None},
        {"event": "message", "data": "plain \u2028 text", "id": None},
    ]
    assert all(got == expected for got in in_node(script, stream))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("integer(130000)", "130,000"),
        ("loss(null)", "–"),
        ("loss(NaN)", "–"),
        ("exponent(1.16e19)", "1.16 × 10¹⁹"),
        ("exponent(2.5e-7, 2)", "2.5 × 10⁻⁷"),
        ("count(13107000000)", "13.1 B"),
        ("bytes(793000000)", "793 MB"),
        ("duration(82800)", "23 h 00 min"),
        ("duration(0.118)", "118 ms"),
        ("duration(252)", "4 min 12 s"),
        ("duration(187200)", "2 d 04 h"),
        ("progress(0.99996)", "99.9 %"),
        ("progress(1)", "100 %"),
        ("significant(0.353553)", "0.3536"),
    ],
)
def test_numbers_are_written_for_people(call: str, said: str) -> None:
    script = f'import * as f from "./format.js"; console.log(JSON.stringify(f.{call}));'
    assert in_node(script, None) == said


def test_evaluations_under_different_settings_are_never_one_line() -> None:
    script = """
        import { comparePicture } from "./charts/comparison.js";
        const view = { key: "val_bpb", mode: "step", zoom: null };
        console.log(JSON.stringify(comparePicture(given, view)));
    """
    plan = {"batch": {"tokens": 1024}, "horizon": {"flops_per_token": 10}}
    evaluations = [
        {"kind": "bpb", "step": s, "value": 1.0 - s / 100, "identity": i, "unix_seconds": s,
         "superseded": False}
        for s, i in [(10, "a"), (20, "a"), (30, "b"), (40, "a")]
    ]  # fmt: skip
    run = {"name": "r", "colour": "c", "detail": {"plan": plan}, "evaluations": evaluations}
    picture = in_node(script, [run])
    assert picture["x"] == [10, 20, 30, 40]
    assert [line["values"] for line in picture["lines"]] == [
        [0.9, 0.8, None, 0.6],
        [None, None, 0.7, None],
    ]


def test_a_lone_spike_does_not_flatten_the_loss_and_is_still_in_the_picture() -> None:
    script = """
        import { focus } from "./charts/pictures.js";
        const x = Array.from({ length: 1000 }, (_, i) => i);
        const mean = x.map((i) => 3 + 5 * Math.exp(-i / 20));
        const high = mean.map((v, i) => (i === 500 ? 9 : v + 0.1));
        const line = { values: mean, band: { high, low: mean.map((v) => v - 0.1) } };
        const peak = Math.max(...high.slice(100));
        console.log(JSON.stringify({ range: focus(x, [line], [0, 999]), peak }));
    """
    told = in_node(script, None)
    low, high = told["range"]
    assert low < 2.9 < 3.2 < high < 4 < told["peak"]
