"""Every feature of the production layer, proven by its effect on a running server."""
