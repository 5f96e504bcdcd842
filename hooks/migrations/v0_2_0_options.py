"""Seed options.py: the owner's own settings, and what hosts show of the server."""

SEEDED = ("src/{{ package_name }}/options.py",)
