"""What Prometheus and Grafana are given: every expression speaks of what is really exported, and a
real Prometheus scrapes, evaluates and answers.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from server.domain.states import State
from tests.e2e import promql
from tests.e2e.exported import Exported, Series, series
from tests.e2e.prometheus_process import Ask, daemon, prometheus
from tests.server.live_server import serving, until
from trainer.contract.metrics import METRICS
from trainer.contract.reasons import Reason

DOCKER = Path(__file__).parents[2] / "docker"
DASHBOARD = DOCKER / "grafana" / "dashboards" / "traind.json"
PROMETHEUS = DOCKER / "prometheus"
# Prometheus adds the first to every target, the others to every series.
ITS_METRICS, ITS_LABELS = {"up"}, {"job", "instance"}
PROMISED = {
    "train_step": {"run"}, "train_end_step": {"run"}, "tokens_seen": {"run"},
    "train_loss": {"run"}, "val_bpb": {"run"}, "core_metric": {"run"},
    "learning_rate_multiplier": {"run"}, "tokens_per_second": {"run"}, "mfu_ratio": {"run"},
    "vram_bytes": {"run", "kind"}, "power_watts": {"run"}, "temperature_celsius": {"run"},
    "grad_norm": {"run"},
    "last_step_timestamp_seconds": {"run"}, "eta_timestamp_seconds": {"run"},
    "checkpoint_last_success_timestamp_seconds": {"run"}, "run_state": {"run", "state"},
    "run_info": {"run", "phase", "model", "device"}, "tokens_processed_total": {"run"},
    "steps_processed_total": {"run"}, "lost_steps_total": {"run"},
    "restarts_total": {"run", "reason"}, "energy_joules_total": {"run"},
    "checkpoint_bytes_total": {"run"}, "step_duration_seconds_bucket": {"run", "le"},
    "checkpoint_save_seconds_bucket": {"run", "le"}, "disk_free_bytes": set(),
    "database_wal_bytes": set(),
    "ingest_lag_seconds": set(), "build_info": {"version"},
    "http_requests_total": {"method", "route", "status"},
}  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    made = Exported(tmp_path_factory.mktemp("exported"))
    made.asgi.get("/healthz")  # one request to count
    yield made
    made.close()


@pytest.fixture(scope="module")
def scraped(exported: Exported) -> Series:
    return series(exported.scrape())


def dashboard_expressions() -> list[tuple[str, str, str]]:
    """(where, expression, legend) of each panel query, variable and annotation."""
    board = json.loads(DASHBOARD.read_text())
    found = [
        (panel["title"], target["expr"], target["legendFormat"])
        for panel in board["panels"]
        for target in panel.get("targets", [])
    ]
    for note in board["annotations"]["list"]:
        found.append((note["name"], note["expr"], note["titleFormat"]))
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            inside = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"])
            assert inside, variable["definition"]
            found.append((variable["name"], inside[1], f"{{{{{inside[2]}}}}}"))
    return found


def rule_expressions() -> list[tuple[str, str, str]]:
    groups = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"]
    return [
        (rule["alert"], rule["expr"], " ".join(rule["annotations"].values()))
        for group in groups
        for rule in group["rules"]
    ]


def complaints(expression: str, text: str, scraped: Series) -> list[str]:
    """What an expression, or the text beside it, names that no scrape has."""
    parsed, found, known = promql.parse(expression), [], set(ITS_LABELS)
    assert parsed.metrics, expression
    for name, matchers in parsed.metrics:
        if name not in scraped and name not in ITS_METRICS:
            found.append(f"no metric {name}")
            continue
        labels = {label for one in scraped.get(name, []) for label in one} | ITS_LABELS
        known |= labels
        for matcher in matchers:
            if matcher.label not in labels:
                found.append(f"{name} has no label {matcher.label}")
            found += _odd_values(name, matcher, scraped)
    shown = set(re.findall(r"\{\{\s*(?:\$labels\.)?([a-z_]+)\s*\}\}", text))
    return [*found, *(f"no label {label}" for label in (parsed.labels | shown) - known)]


def _odd_values(name: str, matcher: promql.Matcher, scraped: Series) -> list[str]:
    """Values asked for that can never be; only where the values are a list that is known."""
    known = {
        "state": {str(state) for state in State},
        "reason": {str(reason) for reason in Reason},
        "kind": {one["kind"] for one in scraped.get(name, []) if "kind" in one},
    }
    if matcher.label not in known:
        return []
    odd = set(matcher.value.split("|")) - known[matcher.label]
    return [f"{name} never has {matcher.label} {value}" for value in sorted(odd)]


# --- names ---------------------------------------------------------------------------------------


def test_everything_promised_is_exported_with_these_labels(scraped: Series):
    for name, labels in PROMISED.items():
        assert [set(one) for one in scraped[f"traind_{name}"]][:1] == [labels], name


def test_the_dashboard_shows_everything_promised():
    shown = {n for _, expr, _ in dashboard_expressions() for n, _ in promql.parse(expr).metrics}
    assert {f"traind_{name}" for name in PROMISED} - shown == set()


@pytest.mark.parametrize(
    ("where", "expression", "text"), [*dashboard_expressions(), *rule_expressions()]
)
def test_an_expression_names_only_what_is_exported(
    where: str, expression: str, text: str, scraped: Series
):
    assert complaints(expression, text, scraped) == [], where


@pytest.mark.parametrize(
    "wrong",
    [
        "traind_train_los",
        'traind_train_loss{name="a"}',
        'traind_run_state{state="runing"}',
        'traind_vram_bytes{kind!="used"}',
        "sum by (phase) (traind_train_loss)",
        'rate(traind_restarts_total{reason="non_finit"}[5m])',
        "traind_train_step / on (run) traind_end_step",
    ],
)
def test_a_wrong_name_would_be_seen(wrong: str, scraped: Series):
    assert complaints(wrong, "", scraped)
    assert complaints("traind_train_loss", "{{ $labels.phase }}", scraped)


def test_panels_do_not_overlap_and_speak_to_the_chosen_prometheus():
    panels, taken = json.loads(DASHBOARD.read_text())["panels"], set()
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        for target in panel.get("targets", []):
            assert target["datasource"]["uid"] == "${datasource}"


def test_every_gauge_of_the_registry_is_shown():
    shown = {n for _, expr, _ in dashboard_expressions() for n, _ in promql.parse(expr).metrics}
    assert {f"traind_{metric.gauge}" for metric in METRICS if metric.gauge} - shown == set()


def test_panels_of_runs_lead_to_the_runs_page_and_legends_have_last_min_and_max():
    board = json.loads(DASHBOARD.read_text())
    assert "page" in {v["name"] for v in board["templating"]["list"] if v["type"] == "textbox"}
    for panel in board["panels"]:
        if panel["type"] != "timeseries":
            continue
        legend = panel["options"]["legend"]
        assert (legend["displayMode"], legend["calcs"]) == ("table", ["lastNotNull", "min", "max"])
        if any("run" in target["legendFormat"] for target in panel["targets"]):
            (link,) = panel["fieldConfig"]["defaults"]["links"]
            assert link["url"] == "${page}/#/runs/${__field.labels.run}", panel["title"]


@pytest.mark.parametrize("title", ["Loss", "Gradient norm"])
def test_what_spans_decades_has_a_log_scale(title: str):
    (panel,) = (p for p in json.loads(DASHBOARD.read_text())["panels"] if p["title"] == title)
    assert panel["fieldConfig"]["defaults"]["custom"]["scaleDistribution"]["type"] == "log"


@pytest.mark.parametrize("title", ["Step time", "Time to save"])
def test_quantiles_are_those_of_each_run(title: str):
    (panel,) = (p for p in json.loads(DASHBOARD.read_text())["panels"] if p["title"] == title)
    for target in panel["targets"]:
        assert 'run=~"$run"' in target["expr"]
        assert "sum by (run, le)" in target["expr"] or "quantile" not in target["expr"]
        assert target["legendFormat"].startswith("{{run}}")


def test_a_loss_that_is_not_finite_is_nan_and_others_are_numbers(exported: Exported):
    lines = [line for line in exported.scrape().splitlines() if "train_loss{" in line]
    values = dict(line.split(" ") for line in lines)
    assert values['traind_train_loss{run="broken"}'] == "NaN"
    assert float(values['traind_train_loss{run="alive"}']) > 2


# --- promtool ------------------------------------------------------------------------------------


def promtool(*arguments: str, stdin: str | None = None) -> str:
    ran = subprocess.run(
        ["promtool", *arguments], input=stdin, capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


@pytest.mark.needs("prometheus")
def test_promtool_finds_nothing_in_a_scrape(exported: Exported):
    assert promtool("check", "metrics", stdin=exported.scrape()).strip() == ""


@pytest.mark.needs("prometheus")
def test_promtool_accepts_the_rules_and_sees_each_fire_and_stay_silent():
    promtool("check", "rules", "--lint-fatal", str(PROMETHEUS / "rules.yml"))
    promtool("test", "rules", str(PROMETHEUS / "rules_test.yml"))
    tests = yaml.safe_load((PROMETHEUS / "rules_test.yml").read_text())["tests"]
    seen: dict[str, set[bool]] = {}
    for case in (case for test in tests for case in test["alert_rule_test"]):
        seen.setdefault(case["alertname"], set()).add(bool(case["exp_alerts"]))
    assert seen == {name: {True, False} for name, _, _ in rule_expressions()}


@pytest.mark.needs("prometheus")
@pytest.mark.parametrize("where", ["Restarts and lost steps", "Restarts"])
def test_the_first_restart_of_a_run_is_shown(where: str, tmp_path: Path):
    """Its counter begins at one: `increase` and `changes` see nothing in a series that is new.
    What a daemon counted before Prometheus knew the run is no restart of now."""
    expression = next(e for w, e, _ in dashboard_expressions() if w == where and "restarts" in e)
    series = {
        'traind_run_state{job="traind", instance="a", run="r", state="running"}': "1x240",
        'traind_restarts_total{job="traind", instance="a", run="r", reason="crashed"}': (
            "_x120 1x59 2x60"
        ),
        'traind_run_state{job="traind", instance="a", run="late", state="running"}': "_x120 1x120",
        'traind_restarts_total{job="traind", instance="a", run="late", reason="crashed"}': (
            "_x120 7x120"
        ),
    }

    def case(minutes: float, shown: bool) -> dict[str, object]:
        question = f"count by (run) (({_filled_in(expression, interval='4m')}) > 0)"
        answer = [{"labels": '{run="r"}', "value": 1}] if shown else []
        return {"expr": question, "eval_time": f"{60 * minutes:.0f}s", "exp_samples": answer}

    cases = [case(29, False), case(30.5, True), case(40, False), case(45.5, True), case(58, False)]
    given = [{"series": name, "values": values} for name, values in series.items()]
    tests = [{"interval": "15s", "input_series": given, "promql_expr_test": cases}]
    file = tmp_path / "first.yml"
    file.write_text(yaml.safe_dump({"rule_files": [], "tests": tests}))
    promtool("test", "rules", str(file))


@pytest.mark.needs("prometheus")
def test_promtool_accepts_the_configuration(tmp_path: Path):
    promtool("check", "config", str(_configured(tmp_path, {"traind": ["127.0.0.1:1"]})))


# --- a real Prometheus ---------------------------------------------------------------------------


@pytest.mark.needs("prometheus")
@pytest.mark.timeout(240)
def test_a_real_prometheus_scrapes_with_the_token_and_answers(tmp_path: Path):
    token = _token(tmp_path)
    exported = Exported(tmp_path / "exported", auth="always", token_file=token)
    with serving(exported.asgi) as served, daemon(tmp_path, token) as url:
        here = [f"127.0.0.1:{served.port}", url.removeprefix("http://")]
        configuration = _configured(tmp_path, {"traind": here, "intruder": here[1:]})
        with prometheus(tmp_path, configuration) as ask:
            _sees_the_daemon(ask, here)
            _answers_every_expression(ask, exported, here[0])
            _raises_the_alarm(ask)
    exported.close()


def _sees_the_daemon(ask: Ask, here: list[str]) -> None:
    """Both targets with the token, none with a wrong one; the real run's step comes through."""
    until(lambda: _values(ask, 'up{job="traind"}') == dict.fromkeys(here, 1.0), 30)
    until(lambda: _values(ask, 'up{job="intruder"}') == {here[1]: 0.0}, 30)
    targets = ask("targets")["activeTargets"]
    assert "401" in next(t["lastError"] for t in targets if t["labels"]["job"] == "intruder")
    step = 'traind_train_step{run="real"}'
    until(lambda: _values(ask, step).get(here[1], 0) > 3, 60)
    assert _values(ask, 'traind_run_state{run="real", state="running"}') == {here[1]: 1.0}


def _answers_every_expression(ask: Ask, exported: Exported, instance: str) -> None:
    """Each query of the dashboard has an answer, while a run trains, saves and is restarted."""
    waiting = {expression: where for where, expression, _ in dashboard_expressions()}
    exported.next_attempt()
    deadline = time.monotonic() + 60
    while waiting:
        exported.train(5)
        for expression in list(waiting):
            if ask("query", query=_filled_in(expression))["result"]:
                del waiting[expression]
        assert time.monotonic() < deadline, waiting
        time.sleep(0.5)
    loss = _values(ask, 'traind_train_loss{run="alive"}')
    assert 2 < loss[instance] < 3


def _raises_the_alarm(ask: Ask) -> None:
    """Its own evaluation of the rules goes well, and the broken run is noticed."""

    def firing() -> set[tuple[str, str]]:
        alerts = [a["labels"] for a in ask("alerts")["alerts"] if a["state"] == "firing"]
        return {(a["alertname"], a.get("run", "")) for a in alerts}

    wanted = {("TraindRunFailed", "broken"), ("TraindLossNotFinite", "broken")}
    until(lambda: wanted <= firing(), 30)
    assert ("TraindRunFailed", "alive") not in firing()
    rules = [rule for group in ask("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in rules} == {name for name, _, _ in rule_expressions()}
    assert {rule["health"] for rule in rules} == {"ok"}


def _filled_in(expression: str, interval: str = "20s") -> str:
    for variable, value in (("$job", "traind"), ("$run", ".+"), ("$__rate_interval", interval)):
        expression = expression.replace(variable, value)
    return expression


def _values(ask: Ask, query: str) -> dict[str, float]:
    """{instance: value}"""
    result = ask("query", query=query)["result"]
    return {one["metric"]["instance"]: float(one["value"][1]) for one in result}


def _token(directory: Path) -> Path:
    token = directory / "token"
    token.write_text("a-token-of-the-test\n")
    return token


def _configured(directory: Path, jobs: dict[str, list[str]]) -> Path:
    """Our configuration with other targets and a token file that is here; scraping each second."""
    configuration = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    configuration["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
    configuration["rule_files"] = [str(PROMETHEUS / name) for name in configuration["rule_files"]]
    (ours,) = configuration["scrape_configs"]
    configuration["scrape_configs"] = []
    for name, targets in jobs.items():
        job = json.loads(json.dumps(ours))
        secret = directory / ("token" if name == "traind" else "wrong-token")
        if not secret.exists():
            secret.write_text("not-the-token-at-all\n")
        job["job_name"] = name
        job["authorization"]["credentials_file"] = str(secret)
        job["static_configs"] = [{"targets": targets}]
        configuration["scrape_configs"].append(job)
    path = directory / "prometheus.yml"
    path.write_text(yaml.safe_dump(configuration))
    return path
