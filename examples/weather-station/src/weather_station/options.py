"""Your own settings, and what hosts show of this server. Updates never change this file."""

from . import production

INSTRUCTIONS = ""
"""Tells the model what the server is for and how its tools work together, in at most 2,048 characters."""


class Settings(production.Settings):
    """Your settings: each field is an environment variable, whose name is the field's in capitals."""
