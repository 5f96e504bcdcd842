"""Makes tools of an OpenAPI document. `hooks/openapi.py` is its command."""
