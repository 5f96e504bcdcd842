"""Everything between a tool and the upstream API: the HTTP client, its errors, retries and circuits."""
