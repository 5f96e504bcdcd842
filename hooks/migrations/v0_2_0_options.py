"""The owner's own settings and what hosts show of the server: a file of the owner's."""

SEEDED = ("src/{{ package_name }}/options.py",)
