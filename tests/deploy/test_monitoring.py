"""The dashboard and the alerts ask for metrics that there are, and every alert is explained."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pagewire.scheduler_svc.metrics.families import pagewire_families
from pagewire.wire.measures import ENDS, OUTCOMES, REFUSALS

DEPLOY = Path(__file__).parents[2] / "deploy"
FAMILIES = pagewire_families("m", "1", "sim")
HISTOGRAMS = {family.name for family in FAMILIES if family.kind == "histogram"}
SAMPLES = {family.sample_name for family in FAMILIES if family.kind != "histogram"} | {
    f"{name}_{end}" for name in HISTOGRAMS for end in ("bucket", "sum", "count")
}
WORDS = {"outcome": OUTCOMES, "reason": (*ENDS, *REFUSALS)}
NAME = re.compile(r"\b(?:pagewire|vllm)[:_]\w+")


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DEPLOY / "grafana" / "pagewire.json").read_text())
    return found


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def queries() -> list[tuple[str, str]]:
    """Where each stands, and its expression."""
    found = dashboard()
    panels = [(panel["title"], target["expr"]) for panel in found["panels"] for target in panel.get("targets", [])]
    variables = [
        (each["name"], each["query"]["query"]) for each in found["templating"]["list"] if each["type"] == "query"
    ]
    return [*panels, *variables, *((rule["alert"], rule["expr"]) for rule in alerts())]


@pytest.mark.parametrize(("title", "expression"), queries())
def test_a_query_asks_for_metrics_and_words_that_there_are(title: str, expression: str) -> None:
    names = set(NAME.findall(expression))
    assert names, f"{title} asks for no metric of ours"
    assert names <= SAMPLES
    assert expression.count("(") == expression.count(")")
    for label, words in re.findall(r'(\w+)[!=]~?"([\w|]+)"', expression):
        assert set(words.split("|")) <= set(WORDS[label]), f"{title}: {label} is never {words}"
    for name in re.findall(r"histogram_quantile\(.*?(pagewire_\w+)", expression):
        assert name.endswith("_bucket")


def test_every_metric_of_ours_stands_on_the_dashboard() -> None:
    shown = {name for _, expression in queries() for name in NAME.findall(expression)}
    # The size of a block is no course of time, and a ratio since the last report is for those who keep none.
    unneeded = {"pagewire_kv_block_size_tokens", "pagewire_worker_idle_ratio"}
    unneeded |= {name for name in HISTOGRAMS if name.startswith("pagewire_request_") and not name.endswith("_seconds")}
    missing = [
        family.name
        for family in FAMILIES
        if family.name not in unneeded
        and not {family.sample_name, f"{family.name}_bucket", f"{family.name}_sum"} & shown
    ]
    assert missing == []


def test_the_dashboard_s_panels_do_not_overlap() -> None:
    places: set[tuple[int, int]] = set()
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        covered = {(at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"])}
        assert not covered & places, panel["title"]
        places |= covered


def test_every_alert_and_every_metric_stands_in_the_operator_s_page() -> None:
    page = (DEPLOY / "README.md").read_text()
    names = [rule["alert"] for rule in alerts()]
    assert len(set(names)) == len(names)
    for rule in alerts():
        assert f"| `{rule['alert']}` |" in page
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"]["summary"]
    assert set(re.findall(r"^\| `(Pagewire\w+)` \|", page, re.MULTILINE)) == set(names)
    told = set(re.findall(r"`(pagewire_\w+)", page))
    assert {family.name if family.kind == "histogram" else family.sample_name for family in FAMILIES} == told


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_takes_the_rules_and_understands_the_dashboard_s_queries(tmp_path: Path) -> None:
    filled = tmp_path / "queries.yaml"
    rules = [
        {"record": f"query:{number}", "expr": expression.replace("$__rate_interval", "5m").replace("$instance", ".*")}
        for number, (_, expression) in enumerate(queries())
        if not expression.startswith("label_values")
    ]
    filled.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    command = ["promtool", "check", "rules", str(DEPLOY / "prometheus" / "alerts.yaml"), str(filled)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
