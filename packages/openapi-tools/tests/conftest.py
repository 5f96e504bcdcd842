"""What was generated from the documents of the folder `documents`."""

from __future__ import annotations

import pytest
from document_builders import generate_from_file
from openapi_tools import Generated


@pytest.fixture(scope="session")
def plain() -> Generated:
    return generate_from_file("plain.yaml")


@pytest.fixture(scope="session")
def modern() -> Generated:
    return generate_from_file("modern.yaml")


@pytest.fixture(scope="session")
def hostile() -> Generated:
    return generate_from_file("hostile.yaml")
