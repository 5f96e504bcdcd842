"""Builders of the Grafana dashboards of the generated project; their JSON is committed in template/ops/grafana/."""
