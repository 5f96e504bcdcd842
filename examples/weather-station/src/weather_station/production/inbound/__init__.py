"""Everything between a client and a tool: guard, authentication, and the pipeline around every request."""
