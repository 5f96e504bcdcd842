"""Rate limit: a caller's calls beyond the limit are rejected, with the time to wait; other callers are not affected."""

from weather_station.production.testing import Server, wait_for

from .support import assert_sample, text, tools


def test_calls_beyond_the_limit_are_rejected() -> None:
    proxied = {"trusted_proxies": ("127.0.0.1",)}
    with Server(tools, rate_limit_requests=2, rate_limit_window_seconds=100, **proxied) as server:
        results = [server.call("echo", {"text": "hello"}) for _ in range(3)]
        assert [result.is_error for result in results] == [False, False, True]
        meta = results[2].meta or {}
        seconds = meta["retry_after_seconds"]
        assert text(results[2]) == f"Rate limit exceeded. 0 requests remaining. Try again in {seconds} seconds."
        assert (0 < seconds <= 50, meta["limit"]) == (True, 2)
        assert not server.call("echo", {"text": "hello"}, {"X-Forwarded-For": "203.0.113.7"}).is_error
        assert server.get("/health").json()["rate_limit"] == {"remaining": 0, "window_seconds": 100}
        assert_sample(server, 1, "mcp_rate_limit_rejections_total")
        assert_sample(server, 1, "mcp_tool_calls_total", tool_name="echo", status="rejected")


def test_permits_are_restored_over_time() -> None:
    with Server(tools, rate_limit_requests=10, rate_limit_window_seconds=1) as server:
        wait_for(lambda: server.call("echo", {"text": "hello"}).is_error)
        wait_for(lambda: not server.call("echo", {"text": "hello"}).is_error)
