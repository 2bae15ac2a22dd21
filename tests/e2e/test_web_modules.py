"""The dashboard's pure modules, run by node: they must say what the Python says."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from server.api import catalog as catalog_api
from server.dashboard import bundle, files
from server.domain.states import ENDED, REQUESTS, SETTLED, VERBS, YIELDS, State
from server.queries import planned
from server.schemas.groups import GroupRequest
from tests.contract.test_units import ALIKE
from trainer.contract.extend import JUMP
from trainer.contract.metric_text import shown
from trainer.contract.metrics import METRICS
from trainer.contract.schedule import initial_schedule, weight_decay_multiplier

WEB = Path(__file__).parents[2] / "server" / "web"
pytestmark = pytest.mark.needs("node")


IMPORT = re.compile(r"""^(?:import|export)\b[^"]*?"(\.[^"]+)";""", re.MULTILINE)


def in_node(script: str, given: Any) -> Any:
    """What `script` (an ES module with `given` in scope, the catalog taken) prints as JSON."""
    read = (
        'import { readFileSync } from "node:fs";\nimport * as catalog from "./catalog.js";\n'
        "catalog.take(JSON.parse(process.env.CATALOG));\n"
        "const given = JSON.parse(readFileSync(0));\n"
    )
    done = subprocess.run(
        ["node", "--input-type=module", "-e", read + script],
        input=json.dumps(given), capture_output=True, text=True, timeout=60, check=False, cwd=WEB,
        env={**os.environ, "CATALOG": json.dumps(catalog())},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def catalog() -> Any:
    return catalog_api.catalog().model_dump(mode="json")


def test_the_page_offers_what_the_catalog_calls_legal_and_changes_something() -> None:
    script = """
        import { isActive, isOffered, LABELS, TONE } from "./verbs.js";
        const of = (s) => Object.keys(LABELS).filter((v) => isOffered(v, s));
        console.log(JSON.stringify({
          offered: given.states.map((s) => [s, of(s)]), active: given.states.filter(isActive),
          toned: Object.keys(TONE), labels: Object.keys(LABELS),
        }));
    """
    told = in_node(script, catalog())
    every = set().union(*VERBS.values()) | REQUESTS.keys()
    assert set(told["labels"]) == every
    assert set(told["toned"]) == set(State)
    assert set(told["active"]) == set(State) - SETTLED
    offered = {State(state): set(verbs) for state, verbs in told["offered"]}
    for state, verbs in offered.items():
        requests = {name for name, legal in REQUESTS.items() if state in legal}
        assert verbs <= VERBS[state] | requests, state
    assert offered[State.running] == {
        "pause", "extend", "checkpoint", "evaluate", "edit", "cancel",
    }  # fmt: skip
    assert offered[State.pausing] == {"resume", "extend", "evaluate", "edit", "cancel"}
    assert offered[State.paused] == {"resume", "extend", "evaluate", "edit", "cancel", "delete"}


def test_every_metric_of_the_catalog_has_a_panel_and_can_be_compared() -> None:
    """A metric that the next release adds to the registry appears by itself."""
    given = catalog()
    given["metrics"].append(
        given["metrics"][0] | {"key": "update_norm", "label": "Update norm", "unit": ""}
    )
    script = """
        import { compared } from "./charts/comparison.js";
        import { keysOf, panels } from "./charts/panels.js";
        catalog.take(given);
        const shown = panels();
        console.log(JSON.stringify({
          keys: keysOf(shown), evaluations: shown.map((p) => p.evaluation).filter(Boolean),
          compared: Object.keys(compared()),
          titles: shown.map((p) => p.title), power: compared().power_watts.format(187.4),
        }));
    """
    told = in_node(script, given)
    steps = {m["key"] for m in given["metrics"] if m["source"] != "evaluation"}
    assert set(told["keys"]) == steps - {"step_seconds"}
    assert told["evaluations"] == ["bpb", "core"]
    assert told["compared"] == [m["key"] for m in given["metrics"]]
    assert "Update norm" in told["titles"]
    assert told["power"] == "187 W"


def test_the_page_is_four_files_and_every_module_is_in_its_script() -> None:
    """A module asked for later, while the daemon is away, would be missing for good."""
    found, waiting = set(), ["app.js"]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            text = (WEB / module).read_text()
            assert "import(" not in text.replace("{import(", ""), module  # but in types
            folder = (WEB / module).parent
            names = [(folder / name).resolve() for name in IMPORT.findall(text)]
            waiting += [str(name.relative_to(WEB)) for name in names]
    assert set(bundle.modules("app.js", files.read_text)) == found
    kept = {str(p.relative_to(WEB)) for p in WEB.rglob("*.js")} - {"early.js", "docs.js"}
    assert kept == found, "a module that no page needs"
    page = (WEB / "index.html").read_text()
    assert re.findall(r'(?:src|href)="static/([^"]+)"', page) == [
        "early.js", "page.css", "page.js",
    ]  # fmt: skip
    icon = re.findall(r'<link rel="icon" href="data:image/svg\+xml,([^"]+)">', page)[0]
    drawn = re.sub(r">\s+<", "><", (WEB / "favicon.svg").read_text().strip())
    assert unquote(icon) == drawn.replace('"', "'"), "the icon in the page is another"
    sheets = {str(p.relative_to(WEB)) for p in WEB.rglob("*.css")} - {"docs.css"}
    assert set(files.STYLE_SHEETS) == sheets


BUNDLED = {
    "app.js": 'import { two, one as first } from "./a/x.js";\nimport * as x from "./a/x.js";\n'
    'import whole from "./a/y.js";\n'
    "console.log(JSON.stringify([first, two(), x.one, whole, new x.C().n, await_()]));\n"
    'function await_() { return "import x from"; }\n',
    "a/x.js": 'import whole from "./y.js";\nexport const one = 1;\n'
    "export function two() { return one + whole; }\nexport class C { n = 4; }\n",
    "a/y.js": "/*\nexport function gone() {}\n*/\nconst y = 7;\nexport { y as default };\n",
}


def test_the_bundle_runs_as_the_modules_do() -> None:
    done = subprocess.run(
        ["node", "-e", bundle.script("app.js", BUNDLED.__getitem__)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == [1, 8, 1, 7, 4, "import x from"]


@pytest.mark.parametrize(
    ("modules", "said"),
    [
        ({"app.js": "export default 7;\n"}, "cannot bundle 'export default 7;'"),
        ({"app.js": 'import "./b.js";\n'}, "cannot bundle"),
        (
            {"app.js": 'import { a } from "./b.js";\n', "b.js": 'import { x } from "./app.js";\n'},
            "app.js -> b.js -> app.js",
        ),
    ],
)
def test_what_the_bundle_cannot_read_is_an_error(modules: dict[str, str], said: str) -> None:
    with pytest.raises(bundle.WebBundleError, match=re.escape(said)):
        bundle.script("app.js", modules.__getitem__)


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
        ("fixed(null, 4)", "–"),
        ("fixed(NaN, 4)", "–"),
        ("exponent(2.5e-7, 2)", "2.5 × 10⁻⁷"),
        ('sentence("no space is left on /data")', "No space is left on /data."),
        ('sentence("loss: not finite")', "Loss: not finite."),
        ('sentence("cuda:0 has gone.")', "cuda:0 has gone."),
        ('sentence("nvidia-smi does not answer")', "nvidia-smi does not answer."),
        ('sentence("Why? See the log:")', "Why? See the log:"),
        ("sentence(null)", ""),
    ],
)
def test_numbers_are_written_for_people(call: str, said: str) -> None:
    script = f'import * as f from "./format.js"; console.log(JSON.stringify(f.{call}));'
    assert in_node(script, None) == said


def test_the_page_writes_units_as_the_programs_do() -> None:
    script = """
        import * as f from "./format.js";
        console.log(JSON.stringify(given.map(([name, args]) => f[name](...args))));
    """
    calls = [(name, arguments) for _, name, arguments, _ in ALIKE]
    assert in_node(script, calls) == [text for *_, text in ALIKE]


def test_the_page_writes_each_metric_as_the_programs_do() -> None:
    values = {m.key: 55_690.4 if m.digits == 0 else 0.4215 for m in METRICS}
    script = "console.log(JSON.stringify(given.map(([k, v]) => catalog.written(k, v))));"
    said = in_node(script, list(values.items()))
    assert said == [shown(key, value) for key, value in values.items()]
    names = "console.log(JSON.stringify(catalog.metrics().map(catalog.nameOf)));"
    assert in_node(names, None) == [m.name for m in METRICS]


def run_json(name: str, steps: list[int], values: list[float], **more: Any) -> dict[str, Any]:
    """A run as the page knows it, with one curve; node makes the Map of its columns."""
    plan = {"batch": {"tokens": 1024}, "horizon": {"flops_per_token": 10}}
    history = {
        "steps": steps, "seconds": [10.0 * s for s in steps], "segments": [],
        "columns": [["loss_smooth", {"mean": values, "min": None, "max": None}]],
    }  # fmt: skip
    return {"name": name, "colour": "c", "detail": {"plan": plan}, "history": history, **more}


def test_a_comparison_shows_each_of_its_runs_however_short_or_bad() -> None:
    """Runs of 900, 229 and 5,878 steps; the focus of all their points together hid the second."""
    script = """
        import { comparePicture } from "./charts/comparison.js";
        for (const run of given) run.history.columns = new Map(run.history.columns);
        const view = { key: "loss_smooth", mode: "step", zoom: null };
        console.log(JSON.stringify(comparePicture(given, view)));
    """
    lengths = {"a": (900, 3.0), "short and bad": (229, 7.5), "long": (5878, 2.5)}
    runs = [
        run_json(name, list(range(n)), [end + 4 * 0.99**s for s in range(n)])
        for name, (n, end) in lengths.items()
    ]
    picture = in_node(script, runs)
    low, high = picture["yRange"]
    for line in picture["lines"]:
        known = [v for v in line["values"] if v is not None]
        assert low <= known[-1] <= high, line["label"]
        assert sum(low <= v <= high for v in known) > len(known) / 2, line["label"]
    assert picture["range"] == [0, 5877]


def test_a_curve_out_of_view_is_known_to_be_above_or_below() -> None:
    script = """
        import { sideOf } from "./charts/marks.js";
        const side = (values) => sideOf({ values }, [0, 1, 2], { min: 0, max: 2 }, 1, 2);
        console.log(JSON.stringify([side([3, null, 4]), side([0.5, 0.1, 0.2]), side([3, 1.5, 3]),
          side([3, 1.5, 0.1]), side([null, null, null])]));
    """
    assert in_node(script, None) == ["above", "below", None, None, None]


def test_colours_stay_with_their_runs_and_twenty_can_be_told_apart() -> None:
    script = """
        import { coloursOf } from "./charts/comparison.js";
        const names = Array.from({ length: 20 }, (_, i) => `run-${i}`);
        const first = coloursOf(names);
        const after = coloursOf(names.slice(5).concat("new"), first);
        const look = (of, name) => Object.values(of.get(name)).join();
        console.log(JSON.stringify({ different: new Set(names.map((n) => look(first, n))).size,
          kept: names.slice(5).every((n) => look(first, n) === look(after, n)) }));
    """
    assert in_node(script, None) == {"different": 20, "kept": True}


def test_the_planned_line_begins_at_the_present_step() -> None:
    """What the daemon planned when it was asked, less what has been trained since."""
    script = """
        import { pictureOf } from "./charts/pictures.js";
        import { panels } from "./charts/panels.js";
        const panel = panels().find((p) => p.id === "decay");
        const axis = { mode: "step", isTime: false, toX: (s) => s, toStep: (x) => x };
        const column = (mean) => ({ mean, min: null, max: null });
        const columns = new Map([["momentum", column([0.9, 0.9])],
          ["weight_decay", column(given.followed)]]);
        const picture = pictureOf(panel, { ...given, columns, axis, evaluations: [], zoom: null,
          look: "full", smoothing: 0, frame: { x: [599, 600], at: [0, 1] } });
        console.log(JSON.stringify({ x: picture.x, lines: picture.lines }));
    """
    schedule = initial_schedule(1000, 40, 0.65, "cosine", 0.05)
    peak = 0.099
    decay = [peak * weight_decay_multiplier(schedule, s) for s in (599, 600)]
    ahead = planned.along([schedule], peak, 500, None, 501).model_dump()
    phases = [{"schedule": schedule.model_dump(), "end_step": 1000}]
    given = {"followed": decay, "phases": phases, "step": 600, "planned": ahead}
    told = in_node(script, given)
    followed, line = [
        next(line for line in told["lines"] if line["label"] == label and line.get("scale") == "y2")
        for label in ("weight decay", "planned")
    ]
    at = told["x"].index(600)
    assert line["values"][at] == pytest.approx(followed["values"][at], rel=1e-5)
    assert line["values"][at - 1] is None


HISTORY = """
    import { createHistory, drawnLength } from "./charts/history.js";
    const answer = (steps, bin) => ({ steps, unix_seconds: steps, bin_steps: bin,
      raw_points: steps.length, segments: [{ phase: 0, attempt: 1, from_step: 0, to_step: 99 }],
      series: [{ key: "loss", mean: steps.map((s) => s / 10), min: null, max: null }] });
    const history = createHistory();
"""


def test_what_is_new_replaces_the_last_bin_and_no_raw_step_follows_the_bins() -> None:
    script = (
        HISTORY
        + """
        history.take(answer([7, 15, 19], 8), 100);
        const asked = history.tailQuery();
        const took = history.takeTail(answer([23, 25], 8), asked.from_step);
        const { steps, columns } = history.known;
        const other = history.takeTail(answer([26], 1), 24);
        const reached = [25, 26, 27].map(history.reaches);
        console.log(JSON.stringify({ asked, took, reached, steps, other,
          loss: columns.get("loss").mean,
          drawn: [drawnLength(history.known, true), drawnLength(history.known, false)] }));
    """
    )
    told = in_node(script, None)
    assert told["asked"] == {"from_step": 16, "bin_steps": 8}
    assert told["took"] is True
    assert told["steps"] == [7, 15, 23, 25]
    assert told["reached"] == [False, True, False], "of 26 steps the last one is number 25"
    assert told["loss"] == [0.7, 1.5, 2.3, 2.5]
    assert told["drawn"] == [3, 4], "a bin of two steps of eight waits: its mean looks like a spike"
    assert told["other"] is False, "bins of another size are asked for anew"


def test_time_has_gaps_where_no_attempt_ran_and_training_time_has_none() -> None:
    script = """
        import { breaksOf, makeAxis } from "./charts/axis.js";
        import { frameOf } from "./charts/pictures.js";
        const { steps, seconds, segments } = given;
        const breaks = breaksOf(given);
        const clock = steps.map((s, i) => [s, seconds[i]]);
        const of = (mode) => frameOf(given, steps.length,
          makeAxis(mode, { tokensPerStep: 1, flopsPerToken: 1, clock, breaks }), breaks);
        console.log(JSON.stringify({ time: of("time"), training: of("training") }));
    """
    given = {
        "steps": [0, 1, 2, 3], "seconds": [0.0, 2.0, 5000.0, 5002.0],
        "segments": [
            {"attempt": 1, "from_step": 0, "to_step": 2},
            {"attempt": 2, "from_step": 2, "to_step": 4},
        ],
    }  # fmt: skip
    told = in_node(script, given)
    assert told["time"]["at"] == [0, 1, -1, 2, 3]
    assert told["training"]["at"] == [0, 1, 2, 3]
    assert told["training"]["x"] == [0, 2, 4, 6]


@pytest.mark.parametrize(("wait", "breaks"), [(1.0, []), (9.0, []), (100.0, [4])])
def test_a_wait_inside_an_attempt_is_a_gap_of_time_and_no_training_time(
    wait: float, breaks: list[int]
) -> None:
    """A disk wait does not end the attempt; a step that is a little slow is no wait."""
    script = """
        import { breaksOf, makeAxis } from "./charts/axis.js";
        const clock = given.steps.map((s, i) => [s, given.seconds[i]]);
        const breaks = breaksOf(given);
        const axis = makeAxis("training", { tokensPerStep: 1, flopsPerToken: 1, clock, breaks });
        const x = given.steps.map((s) => axis.toX(s));
        console.log(JSON.stringify({ breaks: [...breaks], x }));
    """
    at = [0.0, 4.0, 8.0, 12.0, 16.0 + wait, 20.0 + wait]
    segments = [{"attempt": 1, "from_step": 0, "to_step": 12}]
    steps = [1, 3, 5, 7, 9, 11]  # two to a bin
    told = in_node(script, {"steps": steps, "seconds": at, "segments": segments})
    assert told["breaks"] == breaks
    assert told["x"] == ([0, 4, 8, 12, 16, 20] if breaks else at)


def test_a_comparison_over_time_has_a_gap_where_a_run_stood_still() -> None:
    script = """
        import { comparePicture } from "./charts/comparison.js";
        const detail = { step: 4, plan: { batch: { tokens: 1 }, horizon: { flops_per_token: 1 } } };
        const columns = new Map([["loss", { mean: [4, 3, 2, 1], min: null, max: null }]]);
        const history = { ...given, columns };
        const run = { name: "a", colour: "line-1", detail, history };
        const of = (mode) => comparePicture([run], { key: "loss", mode, zoom: null }).lines[0].gaps;
        console.log(JSON.stringify(["time", "training", "step"].map((mode) => of(mode) ?? null)));
    """
    given = {
        "steps": [0, 1, 2, 3], "seconds": [100.0, 102.0, 5000.0, 5002.0],
        "segments": [{"attempt": 1, "from_step": 0, "to_step": 4}],
    }  # fmt: skip
    assert in_node(script, given) == [[[2, 4900]], None, None]


def test_times_on_the_axis_are_written_in_24_hours_with_iso_dates() -> None:
    script = """
        import { timeLabels } from "./charts/axis.js";
        const noon = new Date(2026, 10, 28, 18, 0).getTime() / 1000;
        const ticks = [0, 3, 6, 9].map((hours) => noon + 3600 * hours);
        const close = [0, 5].map((seconds) => noon + seconds);
        console.log(JSON.stringify([
          timeLabels(ticks, 10800), timeLabels([noon], 86400), timeLabels(close, 5),
        ]));
    """
    assert in_node(script, None) == [
        ["11-28 18:00", "21:00", "11-29 00:00", "03:00"],
        ["2026-11-28"],
        ["11-28 18:00:00", "18:00:05"],
    ]


def test_a_log_scale_within_one_decade_has_ticks_to_read_it_by() -> None:
    script = """
        import { logSplits } from "./charts/scales.js";
        console.log(JSON.stringify([logSplits(null, 0, 2.6, 9.4), logSplits(null, 0, 1e-3, 20)]));
    """
    near, far = in_node(script, None)
    assert len(near) >= 4
    assert all(2.6 <= v <= 9.4 for v in near)
    assert far == pytest.approx([0.001, 0.01, 0.1, 1, 10])


def test_smoothing_begins_at_the_first_value() -> None:
    script = """
        import { smooth } from "./charts/smooth.js";
        console.log(JSON.stringify([smooth([5, 5, null, 5], 0.9), smooth([0, 1], 0.5),
          smooth([1, 2], 0)]));
    """
    constant, half, off = in_node(script, None)
    assert constant == [pytest.approx(5), pytest.approx(5), None, pytest.approx(5)]
    assert half == [0, pytest.approx(2 / 3)]
    assert off == [1, 2]


def test_the_compute_multiplier_interpolates_and_never_extrapolates() -> None:
    script = """
        import { computeMultiplier } from "./charts/multiplier.js";
        const baseline = [[1e16, 1.2], [1e17, 1.0], [1e18, 0.9]]
          .map(([flops, bpb]) => ({ flops, bpb }));
        const of = (flops, bpb) => computeMultiplier(baseline, { flops, bpb });
        console.log(JSON.stringify([of(1e17, 1.0), of(5e16, 1.0), of(1e17, Math.sqrt(0.9)),
          of(1e17, 1.3), of(1e17, 0.8)]));
    """
    same, half, between, worse, better = in_node(script, None)
    assert same == pytest.approx(1)
    assert half == pytest.approx(2)
    assert between == pytest.approx(10**0.5)
    assert (worse, better) == (None, None)


def test_settings_that_differ_are_found_at_any_depth() -> None:
    script = """
        import { differences } from "./differences.js";
        console.log(JSON.stringify(differences(given)));
    """
    specs = [
        {
            "name": "a",
            "optimizer": {"matrix_lr": 0.02, "weight_decay": 0.1},
            "metadata": {"x": "1"},
        },
        {"name": "b", "optimizer": {"matrix_lr": 0.03, "weight_decay": 0.1}, "notify": ["x"]},
    ]
    assert in_node(script, specs) == [["optimizer.matrix_lr", [0.02, 0.03]]]


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


def test_hours_are_said_in_a_line() -> None:
    script = """
        import { hoursLine } from "./hours.js";
        console.log(JSON.stringify(given.map(hoursLine)));
    """
    work = {"days": ["mon", "tue", "wed", "thu", "fri"], "from": "22:00", "to": "07:00"}
    weekend = {"days": ["sat", "sun"], "zone": "Europe/Berlin"}
    lines = in_node(script, [None, [], [work, weekend], [{"price_below": 0.2}]])
    assert lines == [
        "always",
        "never",
        "mon–fri 22:00–07:00; sat, sun all day (Europe/Berlin)",
        "all day below 0.2 per kWh",
    ]


def test_a_queue_in_another_order_has_priorities_that_make_that_order() -> None:
    """Runs of equal priority keep their turn; nothing is raised above what it is moved to."""
    rng = random.Random(3)
    queues = []
    for _ in range(300):
        priorities = sorted(rng.choices(range(-3, 4), k=rng.randint(2, 7)), reverse=True)
        waiting = [
            {"run": f"r{i}", "priority": p, "position": i + 1} for i, p in enumerate(priorities)
        ]
        moves = rng.sample(range(len(waiting)), 2)
        queues.append([waiting, *moves])
    script = """
        import { reordered } from "./hours.js";
        console.log(JSON.stringify(given.map((one) => reordered(...one))));
    """
    for (waiting, start, to), changes in zip(queues, in_node(script, queues), strict=True):
        wanted = [entry["run"] for entry in waiting]
        wanted.insert(to, wanted.pop(start))
        new = {entry["run"]: entry["priority"] for entry in waiting} | dict(changes)
        places = {entry["run"]: entry["position"] for entry in waiting}
        assert sorted(places, key=lambda run: (-new[run], places[run])) == wanted
        highest = max(entry["priority"] for entry in waiting)
        assert max(new.values()) <= highest, "a change of order displaces nothing that trains"
    lowest = [{"run": run, "priority": -100, "position": i} for i, run in enumerate("ab")]
    assert in_node(script, [[lowest, 1, 0]]) == [None]


def _moved(number: int, before: str, after: str, reason: str, **data: Any) -> Any:
    return {
        "id": number, "kind": "state", "unix_seconds": 100.0 * number, "message": "",
        "data": {"before": before, "after": after, "reason": reason, **data},
    }  # fmt: skip


def test_yields_name_who_and_until_when() -> None:
    def yielded(number: int, reason: str, *by: str) -> Any:
        names = {"by": list(by)} if by else {}
        return _moved(number, "running", "pausing", reason, is_yield=True, **names)

    events = [
        yielded(2, "device_wanted", "steam", "obs"),
        _moved(3, "pausing", "queued", "device_wanted"),
        _moved(5, "starting", "running", "requested"),
        _moved(6, "running", "pausing", "requested"),
        yielded(7, "preempted", "a-probe"),
        _moved(4, "queued", "starting", "requested"),
        _moved(8, "queued", "starting", "requested"),
        _moved(9, "starting", "running", "requested"),
        yielded(10, "device_hot"),
        _moved(11, "starting", "running", "requested"),
        yielded(12, "a_later_reason", "a", "b", "c"),
        _moved(13, "starting", "running", "requested"),
        yielded(14, "outside_hours"),
    ]
    script = """
        import { when } from "./format.js";
        import { yieldLine, yieldsOf } from "./yields.js";
        const found = yieldsOf(given);
        console.log(JSON.stringify({ found, line: yieldLine(found[0], 250),
          wanted: `yielded to steam and obs at ${when(200, 250)}, back at ${when(500, 250)}` }));
    """
    told = in_node(script, events)
    assert told["line"] == told["wanted"]
    assert [(y["by"], y["at"], y["until"]) for y in told["found"]] == [
        ("yielded to steam and obs", 200, 500),
        ("yielded to a-probe", 700, 900),
        ("paused for heat", 1000, 1100),
        ("yielded to a, b and c", 1200, 1300),
        ("paused outside its hours", 1400, None),
    ]


def test_every_reason_of_a_yield_is_shown_for_an_event_without_the_field() -> None:
    events = [
        _moved(2 * number + at, before, after, reason)
        for number, reason in enumerate(sorted(YIELDS))
        for at, before, after in ((0, "running", "pausing"), (1, "starting", "running"))
    ]
    script = """
        import { yieldsOf } from "./yields.js";
        console.log(JSON.stringify(yieldsOf(given).map(({ by }) => by)));
    """
    assert in_node(script, events) == [
        "paused for heat", "yielded to another program", "paused outside its hours",
        "yielded to a run of higher priority",
    ]  # fmt: skip
    paused = _moved(1, "running", "pausing", "preempted", is_yield=False)
    assert in_node(script, [paused, _moved(2, "running", "pausing", "requested")]) == []


def test_the_ended_states_and_the_jump_of_the_page_are_those_of_the_catalog() -> None:
    events = [
        _moved(1, "running", "pausing", "preempted", is_yield=True),
        _moved(2, "pausing", "failed", "crashed"),
    ]
    script = """
        import { yieldsOf } from "./yields.js";
        const told = () => [yieldsOf(given.events)[0].isOver === true, catalog.learningRateJump(),
          given.states.filter(catalog.isEnded)];
        const own = told();
        catalog.take({ ...given.catalog, ended_states: ["created"], learning_rate_jump: 9 });
        console.log(JSON.stringify([own, told()]));
    """
    given = {"events": events, "states": list(State), "catalog": catalog()}
    own, other = in_node(script, given)
    assert own == [True, JUMP, [state for state in State if state in ENDED]]
    assert other == [False, 9, ["created"]]


def test_what_is_typed_of_a_group_is_a_body_the_daemon_takes() -> None:
    script = """
        import { bodyOf, numMembers } from "./group-text.js";
        const body = bodyOf(given);
        console.log(JSON.stringify({ body, runs: numMembers(body) }));
    """
    typed = {
        "name": " ladder ", "preset": "demo", "base": '{"horizon": {"steps": 9}}',
        "depths": "4, 6 8", "grid": "optimizer.matrix_lr: 0.01 0.02\n",
        "repeats": "2", "budget": {"minutes": "30", "tokens": "", "kwh": ""},
    }  # fmt: skip
    told = in_node(script, typed)
    assert told["body"] == {
        "name": "ladder", "base": {"preset": "demo", "horizon": {"steps": 9}},
        "depths": [4, 6, 8], "grid": {"optimizer.matrix_lr": [0.01, 0.02]},
        "repeats": 2, "budget": {"minutes": 30},
    }  # fmt: skip
    assert GroupRequest.model_validate(told["body"]).num_members == told["runs"] == 12
