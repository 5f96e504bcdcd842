"""Builds the Grafana dashboards of the generated project; their JSON is committed under template/ops/grafana/."""
