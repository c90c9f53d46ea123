"""Write the parts of Kubernetes' files that have their source elsewhere: `python -m tools.kubernetes_files`.

The schema of the chart gets the settings of the service; the component of the kustomization rules and dashboards.
"""

import json
from pathlib import Path
from typing import Any

from service.settings import PREFIX, Settings

DEPLOY = Path(__file__).parents[1] / "deploy"
SCHEMA = DEPLOY / "helm" / "tinyrm" / "values.schema.json"
RULES = DEPLOY / "prometheus" / "rules.yml"
PROMETHEUS_RULE = DEPLOY / "kubernetes" / "monitoring" / "prometheusrule.yaml"
DASHBOARDS = DEPLOY / "grafana" / "dashboards"
MAPS = DEPLOY / "grafana" / "kustomization.yaml"
# The chart sets these itself, from other values or always to the same.
OF_THE_CHART = ("model", "cache", "host", "port", "api_keys_file")
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
DECIMAL = r"^[0-9]+(\.[0-9]+)?$"

HEADER = """\
# Written by `python -m tools.kubernetes_files` from deploy/prometheus/rules.yml.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: tinyrm
  labels:
    app.kubernetes.io/name: tinyrm
spec:
"""


MAPS_HEADER = """\
# The dashboards as ConfigMaps for the sidecar of Grafana's chart; deploy/kubernetes/monitoring includes them.
# Written by `python -m tools.kubernetes_files`.
apiVersion: kustomize.config.k8s.io/v1alpha1
kind: Component
generatorOptions:
  # The sidecar follows a map by its name.
  disableNameSuffixHash: true
  labels:
    app.kubernetes.io/name: tinyrm
    grafana_dashboard: "1"
  annotations:
    grafana_folder: TinyRM
# One each: `kubectl apply` keeps a copy of an object in an annotation, which has a limit.
configMapGenerator:
"""


def settings_schema() -> dict[str, Any]:
    """Return the JSON schema of the chart's value `settings`."""
    fields = Settings.model_json_schema()["properties"]
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            PREFIX + name.upper(): _setting_schema(field) for name, field in fields.items() if name not in OF_THE_CHART
        },
    }


def _setting_schema(field: dict[str, Any]) -> dict[str, Any]:
    described = {"description": field["description"]}
    if "enum" in field:
        # YAML reads on and off as booleans and 429 as a number; the chart writes them as the service expects them.
        words = field["enum"] + [word == "on" for word in field["enum"] if word in ("on", "off")]
        numbers = [int(word) for word in field["enum"] if word.isdigit()]
        return described | ({"anyOf": [{"enum": words}, {"enum": numbers}]} if numbers else {"enum": words})
    # An optional setting is a type or null; one that is not set is left out of the map.
    kind = field.get("type") or next(one["type"] for one in field["anyOf"] if one["type"] != "null")
    bounds = {bound: field[bound] for bound in BOUNDS if bound in field}
    if kind == "number":
        # `helm --set` reads 2.5 as text.
        return described | {"type": ["number", "string"], "pattern": DECIMAL} | bounds
    return described | {"type": kind} | bounds


def schema_text() -> str:
    """Return the chart's schema with the settings as they are in the code."""
    schema = json.loads(SCHEMA.read_text())
    schema["definitions"]["settings"] = settings_schema()
    return json.dumps(schema, indent=2) + "\n"


def rule_text() -> str:
    """Return the PrometheusRule with the rules as they are in deploy/prometheus."""
    return HEADER + "".join(f"  {line}" if line.strip() else line for line in RULES.read_text().splitlines(True))


def maps_text() -> str:
    """Return the component that makes a ConfigMap of each dashboard."""
    entry = "  - name: tinyrm-dashboard-{0}\n    files:\n      - tinyrm-{0}.json=dashboards/{0}.json\n"
    return MAPS_HEADER + "".join(entry.format(file.stem) for file in sorted(DASHBOARDS.glob("*.json")))


if __name__ == "__main__":
    SCHEMA.write_text(schema_text())
    PROMETHEUS_RULE.write_text(rule_text())
    MAPS.write_text(maps_text())
