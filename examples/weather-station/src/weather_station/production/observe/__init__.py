"""Logs, metrics, traces and health reports."""
