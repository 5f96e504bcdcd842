"""Deprecated stand-in for the API, for tests written for version 0.1.0 of the template."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from my_server.production.testing import Api


@contextmanager
def stand_in(answers: dict[str, Any]) -> Iterator[str]:
    """Respond to a GET of each path with its JSON, and to everything else with 404; yield the URL."""
    message = "tests.production.smoke.stand_in is deprecated: use the fixture `api` of my_server.production.testing"
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # shown and no error, whatever the tests' own filter is
        warnings.warn(message, DeprecationWarning, stacklevel=4)
    with Api() as api:
        for path, answer in answers.items():
            api.on("GET", path, json=answer)
        yield api.url
