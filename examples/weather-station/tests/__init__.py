"""The project's tests: those in `production/` belong to the template, the others are yours."""
