"""The project's tests: `production/` proves the template's part, everything else is yours."""
