"""The chart's custom resources against their own definitions, which are no package: a folder of YAML files is named by
PAGEWIRE_TEST_CRDS (LeaderWorkerSet, InferencePool, GRPCRoute, HTTPRoute, ScaledObject)."""

import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

HELM = Path(__file__).parents[2] / "deploy" / "helm"
FOLDER = os.environ.get("PAGEWIRE_TEST_CRDS", "")
KINDS = {"LeaderWorkerSet", "InferencePool", "GRPCRoute", "HTTPRoute", "ScaledObject"}

chart = pytest.importorskip("helm_python.chart", reason="helm-python-sdk, Helm as a library, is not installed")
pytestmark = pytest.mark.skipif(not FOLDER, reason="PAGEWIRE_TEST_CRDS names no folder with definitions")


def strict(schema: Any) -> Any:
    """As an API server with strict field validation: nothing but what is named may be there."""
    match schema:
        case dict():
            made = {key: strict(value) for key, value in schema.items()}
            if made.pop("x-kubernetes-int-or-string", False):
                return {"type": ["integer", "string"]}
            if "properties" in made and not made.get("x-kubernetes-preserve-unknown-fields"):
                made.setdefault("additionalProperties", False)
            return made
        case list():
            return [strict(part) for part in schema]
    return schema


def definitions() -> dict[tuple[str, str], Any]:
    """(apiVersion, kind) → schema."""
    found = {}
    for file in Path(FOLDER).glob("*.yaml"):
        for part in yaml.safe_load_all(file.read_text()):
            if part and part["kind"] == "CustomResourceDefinition":
                spec = part["spec"]
                for version in spec["versions"]:
                    schema = strict(version["schema"]["openAPIV3Schema"])
                    schema["properties"]["metadata"] = {}
                    found[f"{spec['group']}/{version['name']}", spec["names"]["kind"]] = schema
    return found


def test_custom_resources_are_what_their_definitions_say() -> None:
    known, judged = definitions(), set()
    with chart.Chart.load(HELM / "pagewire") as loaded:
        for case in (HELM / "cases").glob("*.yaml"):
            rendered = loaded.render(yaml.safe_load(case.read_text()), name="llm", namespace="inference")
            for document in (part for text in rendered.values() for part in yaml.safe_load_all(text) if part):
                if document["kind"] in KINDS:
                    schema = known[document["apiVersion"], document["kind"]]
                    assert [error.message for error in jsonschema.Draft7Validator(schema).iter_errors(document)] == []
                    judged.add(document["kind"])
                    planted = {**document, "spec": {**document["spec"], "noSuchField": 1}}
                    assert not jsonschema.Draft7Validator(schema).is_valid(planted)
    assert judged == KINDS
