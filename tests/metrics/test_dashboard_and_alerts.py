"""The dashboard and the alert rules name what the server really exports, and nothing else.

What Prometheus and Grafana themselves make of them was tried by hand (docs/operations.md says how).
"""

import itertools
import json
import re

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

import server.cli.main  # noqa: F401  # loads every error there is
from docs.project_files import ROOT
from fakes import Script
from live_server import live_server, portrait
from metrics.promql import named_in
from pulid.errors import PulidError

DASHBOARD = json.loads((ROOT / "configs/grafana/dashboard.json").read_text())
ALERTS = yaml.safe_load((ROOT / "configs/prometheus/alerts.yaml").read_text())
SCRAPES = yaml.safe_load((ROOT / "configs/prometheus/prometheus.yaml").read_text())

RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]] + [
    rule["expr"] for rule in RULES
]

OF_PROMETHEUS = {"job", "instance"}  # labels of every series it scrapes
NOT_SHOWN = {
    "process_virtual_memory_bytes": "address space is no memory; a process with CUDA has plenty of it",
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """{sample's name: its labels} of a server that has served v1 and v2, well and badly."""
    folder = tmp_path_factory.mktemp("metrics")
    (folder / "script").mkdir()
    body = {"main_face_image": portrait(), "prompt": "portrait", "width": 256, "height": 256, "num_steps": 2}
    with (
        live_server(folder / "data", scripted=Script(folder / "script"), api_keys="alice:secret") as server,
        server.new_client("secret") as client,
    ):
        assert client.post("/v1/flux-pulid", json=body).status_code == 200
        assert client.post("/v1/flux-pulid", json=body | {"prompt": "no face"}).status_code == 400
        assert client.post("/v2/flux-pulid", json=body).status_code == 200
        text = client.get("/metrics").text
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def family_of(name):
    return re.sub(r"_(bucket|sum|count|created)$", "", name)


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_metric_and_label_that_is_asked_for_is_exported(expression, exported):
    named = named_in(expression)
    known = exported | {"up": set()}
    assert named.metrics, "an expression without a metric"
    assert named.metrics <= known.keys()
    for metric, label in named.matched:
        assert label in known[metric] | OF_PROMETHEUS, (metric, label)
    for metric in named.metrics:
        assert named.grouped | named.joined <= known[metric] | OF_PROMETHEUS, metric


def test_every_exported_metric_is_shown_or_left_out_for_a_reason(exported):
    shown = {family_of(name) for expression in EXPRESSIONS for name in named_in(expression).metrics}
    families = {
        family_of(name) for name in exported if not name.endswith("_created") or family_of(name) == name
    }
    assert families - shown == NOT_SHOWN.keys()


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_legend_names_labels_that_its_series_have(panel, exported):
    for target in panel["targets"]:
        named = named_in(target["expr"])
        there = set.union(*(exported[metric] for metric in named.metrics)) | OF_PROMETHEUS
        legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        assert legend <= (named.grouped or there), target["legendFormat"]


def test_panels_have_ids_of_their_own_and_do_not_overlap():
    panels = DASHBOARD["panels"]
    ids = [panel["id"] for panel in panels]
    assert len(set(ids)) == len(ids)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= 24
    for one, other in itertools.combinations(panels, 2):
        a, b = one["gridPos"], other["gridPos"]
        apart = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert apart or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"], (one["title"], other["title"])


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_shows_and_asks_the_chosen_prometheus(panel):
    assert panel["description"].endswith(".")
    unit = panel["fieldConfig"]["defaults"].get("unit") or panel["options"]["yAxis"]["unit"]
    assert unit
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    assert panel["datasource"] == chosen
    for target in panel["targets"]:
        assert target["datasource"] == chosen
        assert 'job=~"$job", instance=~"$instance"' in target["expr"]


def test_titles_are_unique_and_variables_are_declared():
    titles = [panel["title"] for panel in DASHBOARD["panels"]]
    assert len(set(titles)) == len(titles)
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    asked = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD["panels"]))) - {"__rate_interval"}
    assert asked == variables == {"datasource", "job", "instance"}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_wrong_and_what_to_do(rule, exported):
    assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["alert"].startswith("FluxPulid")
    assert rule["labels"].keys() == {"severity"}
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"].keys() == {"summary", "description", "action"}
    named = named_in(rule["expr"])
    there = set.union(*({*exported.get(metric, ())} for metric in named.metrics)) | OF_PROMETHEUS
    told = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
    assert told <= (named.grouped - {"le"} or there)
    assert all(text.strip() for text in rule["annotations"].values())


def test_alert_names_are_unique():
    names = [rule["alert"] for rule in RULES]
    assert len(set(names)) == len(names)


def test_codes_of_failed_jobs_in_alerts_are_codes_that_exist():
    asked = {
        code
        for rule in RULES
        if "jobs_ended" in rule["expr"]
        for codes in re.findall(r'code=~?"([^"]+)"', rule["expr"])
        for code in codes.split("|")
    }
    assert asked
    assert asked <= codes_of(PulidError)


def codes_of(kind):
    return {kind.code}.union(*(codes_of(below) for below in kind.__subclasses__()))


def test_the_sample_scrape_has_the_job_that_the_alerts_look_for():
    [scrape] = SCRAPES["scrape_configs"]
    assert SCRAPES["rule_files"] == ["alerts.yaml"]
    jobs = {job for rule in RULES for job in re.findall(r'job="([^"]+)"', rule["expr"])}
    assert jobs == {scrape["job_name"]}


def test_the_tokenizer_finds_what_is_named_and_nothing_else():
    expression = (
        'histogram_quantile(0.95, sum by (le, route) (rate(a_bucket{route!~"x|by (b)", code="5.."}[5m]))) '
        "/ on (job) group_left (device) c offset 5m > 1e3 and up == 0"
    )
    named = named_in(expression)
    assert named.metrics == {"a_bucket", "c", "up"}
    assert named.matched == {("a_bucket", "route"), ("a_bucket", "code")}
    assert named.grouped == {"le", "route"}
    assert named.joined == {"job", "device"}
