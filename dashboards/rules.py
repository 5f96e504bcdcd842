"""The alert rules of the generated project as Kubernetes resources of the Prometheus Operator."""

from __future__ import annotations

from pathlib import Path

OPS = Path(__file__).resolve().parent.parent / "template" / "ops"
DESTINATION = OPS / "kubernetes" / "base" / "rules"

HEAD = """\
# Generated from ops/prometheus/rules/{file}, which promtool tests.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: {name}
spec:
"""


def build() -> dict[str, str]:
    """Return a PrometheusRule for each file of rules, by file name, with the rules unchanged."""
    resources = {}
    for path in sorted((OPS / "prometheus" / "rules").glob("*.yml")):
        text = path.read_text(encoding="utf-8")
        lines = text[text.index("groups:") :].splitlines()
        body = "\n".join(f"  {line}" if line else line for line in lines)
        resources[path.name] = HEAD.format(file=path.name, name=path.stem.replace("_", "-")) + body + "\n"
    return resources
