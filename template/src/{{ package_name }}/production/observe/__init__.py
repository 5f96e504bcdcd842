"""What operators see: logs, metrics, traces and health."""
