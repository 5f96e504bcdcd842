"""The upstream client: HTTP requests of tools to the upstream API, with retries and circuit breakers."""
