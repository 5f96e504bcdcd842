"""Imports of what has moved are rewritten by their syntax, and what cannot be followed is said and stays."""

from __future__ import annotations

import codecs

import pytest
from updating.imports import ModuleContext, Moves, relocate, rewrite

MOVES = Moves(
    {
        "shop.production.guard": "shop.production.inbound.guard",
        "shop.production.client_config": "shop.production.serve.host_config",
        "shop.production.circuit_breaker": "shop.production.upstream.circuit_breaker",
        "shop.production.retry": "shop.production.upstream.retry",
        "shop.production.app": None,
        "shop.production.client": None,
        "shop.production.gone": None,
    },
    {
        "shop.production:retry": "shop.production:retry",
        "shop.production:get_logger": "shop.production:get_logger",
        "shop.production.client:UpstreamStatusError": "shop.production:UpstreamStatusError",
        "shop.production.client:UpstreamError": "shop.production:UpstreamError",
        "shop.production.client:Upstream": "shop.production.upstream.client:Upstream",
        "shop.production.circuit_breaker:CircuitOpenError": "shop.production:CircuitOpenError",
        "shop.production.app:App": "shop.production.registry:Registry",
        "shop.production.app:production_of().meter": "shop.production:meter()",
    },
)
RENAMED = Moves({"shop": "store"}, {})

TOOL = ModuleContext("shop.tools")
SCRIPT = ModuleContext("")


def rewritten(source: str, here: ModuleContext = TOOL, moves: Moves = MOVES) -> str:
    """The source after the rewriting, which has to leave nothing and to change nothing the second time."""
    result = rewrite(source.encode(), here, moves)
    assert result.unresolved == []
    assert rewrite(result.content, here, moves) == result, "not the same the second time"
    compile(result.content, "tool.py", "exec")
    return result.content.decode()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        # Names that tools import.
        ("from ..production.client import UpstreamStatusError", "from ..production import UpstreamStatusError"),
        ("from shop.production.client import UpstreamStatusError", "from shop.production import UpstreamStatusError"),
        ("from ..production.client import UpstreamError as E", "from ..production import UpstreamError as E"),
        ("from ..production.client import Upstream", "from ..production.upstream.client import Upstream"),
        ("from ..production.app import App", "from ..production.registry import Registry as App"),
        ("from ..production.app import App as A", "from ..production.registry import Registry as A"),
        (
            "from ..production.client import Upstream, UpstreamError",
            "from ..production import UpstreamError\nfrom ..production.upstream.client import Upstream",
        ),
        (
            "from ..production.client import (\n    # for types\n    Upstream,\n    UpstreamError,  # 404\n)",
            "from ..production import (\n    UpstreamError,  # 404\n)\n"
            "from ..production.upstream.client import (\n    # for types\n    Upstream,\n)",
        ),
        (
            "from ..production.client import (  # noqa: F401\n    UpstreamStatusError,\n    UpstreamError,\n)",
            "from ..production import (  # noqa: F401\n    UpstreamStatusError,\n    UpstreamError,\n)",
        ),
        (
            "from ..production.client import UpstreamError  # noqa: F401",
            "from ..production import UpstreamError  # noqa: F401",
        ),
        (
            "from ..production.client import Upstream, UpstreamError  # noqa: F401",
            "from ..production import UpstreamError  # noqa: F401\n"
            "from ..production.upstream.client import Upstream  # noqa: F401",
        ),
        # Names of one module come in one statement.
        (
            "from ..production import get_logger\nfrom ..production.client import UpstreamError",
            "from ..production import UpstreamError, get_logger",
        ),
        (
            "from ..production.circuit_breaker import CircuitOpenError\n"
            "from ..production.client import UpstreamStatusError\n\nlog = 1",
            "from ..production import CircuitOpenError, UpstreamStatusError\n\nlog = 1",
        ),
        (
            "from ..production import get_logger\n\nlog = 1\n\nfrom ..production.client import UpstreamError",
            "from ..production import get_logger\n\nlog = 1\n\nfrom ..production import UpstreamError",
        ),
        # Modules.
        ("from ..production import guard", "from ..production.inbound import guard"),
        ("from ..production import guard as g", "from ..production.inbound import guard as g"),
        ("from ..production import client_config", "from ..production.serve import host_config as client_config"),
        ("from ..production.guard import Guard", "from ..production.inbound.guard import Guard"),
        ("from ..production.guard import *", "from ..production.inbound.guard import *"),
        ("import shop.production.guard as g", "import shop.production.inbound.guard as g"),
        (
            "import shop.production.guard\n\nshop.production.guard.own_host(shop.tools)",
            "import shop.production.inbound.guard\n\nshop.production.inbound.guard.own_host(shop.tools)",
        ),
        (
            "import shop.production.client\n\nshop.production.client.UpstreamError, shop.production.client.Upstream",
            "import shop.production, shop.production.upstream.client\n\n"
            "shop.production.UpstreamError, shop.production.upstream.client.Upstream",
        ),
        (
            "from ..production import client\n\ntry: pass\nexcept client.UpstreamError: raise",
            "from ..production import UpstreamError\n\ntry: pass\nexcept UpstreamError: raise",
        ),
        # Names that were exported stay, also beside a module of that name.
        ("from ..production import retry, get_logger", "from ..production import retry, get_logger"),
        ("from ..production import upstream", "from ..production import upstream"),
        # Where imports stand.
        (
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..production.client import UpstreamError",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..production import UpstreamError",
        ),
        (
            "def f():\n    from ..production.client import Upstream, UpstreamError\n    return Upstream",
            "def f():\n    from ..production import UpstreamError\n"
            "    from ..production.upstream.client import Upstream\n    return Upstream",
        ),
        (
            "import os; from ..production.client import Upstream, UpstreamError; x = 1",
            "import os; from ..production import UpstreamError; "
            "from ..production.upstream.client import Upstream; x = 1",
        ),
        ("if 1: from ..production.guard import Guard", "if 1: from ..production.inbound.guard import Guard"),
        (
            "from ..production.guard \\\n    import Guard, \\\n    Other",
            "from ..production.inbound.guard import Guard, \\\n    Other",
        ),
        # What a name returned.
        (
            "from ..production.app import production_of\n\norders = production_of(server).meter.counter('n')",
            "from ..production import meter\n\norders = meter(server).counter('n')",
        ),
        (
            "from ..production.app import production_of\n\nmeter = production_of(\n    server,\n).meter",
            "from ..production import meter as production_meter\n\nmeter = production_meter(\n    server,\n)",
        ),
        (
            "from ..production import app\n\norders = app.production_of(server).meter.counter('n')",
            "from ..production import meter\n\norders = meter(server).counter('n')",
        ),
    ],
)
def test_an_import_is_rewritten(before: str, after: str) -> None:
    assert rewritten(f"{before}\n") == f"{after}\n"
    assert rewritten(f'"""Tool."""\n\n{before}\n') == f'"""Tool."""\n\n{after}\n'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("import os, shop", "import os, store"),
        ("import shop\n\nshop.run(shop)", "import store\n\nstore.run(store)"),
        ("import shop as s", "import store as s"),
        ("import shop.tools.mine, shops", "import store.tools.mine, shops"),
        (
            "import shop.tools\n\nshop.tools.x = {shop.tools.y: shop}",
            "import store.tools\n\nstore.tools.x = {store.tools.y: store}",
        ),
        ("from shop import tools", "from store import tools"),
        ("from shop.tools import (\n    a,  # one\n    b)", "from store.tools import (\n    a,  # one\n    b)"),
        ("from shops import a", "from shops import a"),
        ("from . import shop", "from . import shop"),
    ],
)
def test_the_package_is_renamed(before: str, after: str) -> None:
    assert rewritten(before, SCRIPT, RENAMED) == after


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("x = 1\nfrom ..production.gone import (\n    a,\n    b,\n)", [3, 4]),
        ("from ..production.client import *", [1]),
        ("from ..production import app\n\napp.unknown()", [1]),
        ("from ..production import client\n\nclient = client.UpstreamError", [1]),
        ("from ..production.app import production_of\n\nproduction_of(server).client", [1]),
        ("import shop.production.app as a", [1]),
        ("import shop.production.client\n\nshop.production.client.unknown", [1, 3]),
        ("import shop.production.client", [1]),
    ],
)
def test_an_import_that_cannot_be_rewritten_stays_and_is_reported(source: str, lines: list[int]) -> None:
    result = rewrite(source.encode(), TOOL, MOVES)
    assert result.unresolved == lines
    assert result.content.decode() == source


def test_other_imports_are_rewritten_beside_one_that_cannot_be() -> None:
    result = rewrite(b"from ..production.app import App, unknown", TOOL, MOVES)
    assert result == (
        b"from ..production.app import unknown\nfrom ..production.registry import Registry as App",
        [1],
    )


@pytest.mark.parametrize(
    "source", ["import shop\n\nshop = 1", "import shop\n\ndef f(shop):\n    return shop.x", "import shop, store"]
)
def test_a_package_whose_name_is_also_a_variable_stays_and_is_reported(source: str) -> None:
    assert rewrite(source.encode(), SCRIPT, RENAMED) == (source.encode(), [1])


@pytest.mark.parametrize(
    "source", ["def f(:\n", "import shop\n\0", "print 'x'\n", "# -*- coding: latin-9000 -*-\nimport shop\n"]
)
def test_a_file_with_a_syntax_error_stays(source: str) -> None:
    assert rewrite(source.encode(), SCRIPT, RENAMED) == (source.encode(), [])


@pytest.mark.parametrize(
    ("head", "encoding"),
    [("", "utf-8"), ("# coding: latin-1\n", "latin-1"), ("# coding: cp1251\n", "cp1251")],
)
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_encodings_and_line_endings_stay(head: str, encoding: str, ending: str) -> None:
    text = "я" if encoding == "cp1251" else "ä"
    source = (
        f"{head}x = '{text}'; import shop.tools; y = '{text}', shop.tools\n\n\nfrom shop.tools import (\n    a,\n)\n"
    )
    after = source.replace("shop", "store").replace("\n", ending).encode(encoding)
    assert rewrite(source.replace("\n", ending).encode(encoding), SCRIPT, RENAMED).content == after
    if encoding == "utf-8":
        marked = codecs.BOM_UTF8 + source.replace("\n", ending).encode()
        assert rewrite(marked, SCRIPT, RENAMED).content == codecs.BOM_UTF8 + after


def test_strings_and_comments_stay() -> None:
    source = "patch('shop.production.guard.Guard')  # from shop.production.guard import Guard\n"
    assert rewritten(source) == source


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("from . import config", "from .. import config"),
        ("from . import config as c, sdk  # both", "from .. import config as c, sdk  # both"),
        ("from . import guard", "from ..inbound import guard"),
        ("from . import retry as r", "from .. import retry as r"),  # the function, which is public
        ("from .config import Config", "from ..config import Config"),
        ("from .config import *", "from ..config import *"),
        ("from .guard import Guard", "from ..inbound.guard import Guard"),
        ("from ..production.guard import Guard", "from ..inbound.guard import Guard"),
        ("from ..tools import weather", "from ...tools import weather"),
        ("from .. import tools", "from ... import tools"),
        ("from shop.production.guard import Guard", "from shop.production.inbound.guard import Guard"),
        ("from .client import UpstreamError", "from .. import UpstreamError"),
        ("from .config import (\n    A,  # one\n    B,\n)", "from ..config import (\n    A,  # one\n    B,\n)"),
        ("from .guard import (\n    Guard,\n)", "from ..inbound.guard import (\n    Guard,\n)"),
        ("from .config \\\n    import A", "from ..config \\\n    import A"),
        ("from \\\n    .config import A", "from \\\n    ..config import A"),
        ("from .config import(A)", "from ..config import(A)"),
        ("from .config import A; from .guard import B", "from ..config import A; from ..inbound.guard import B"),
        ("def f():\n    from .config import A\n\n    return A", "def f():\n    from ..config import A\n\n    return A"),
        (
            "if TYPE_CHECKING:\n    from .config import A\nelse:\n    A = None",
            "if TYPE_CHECKING:\n    from ..config import A\nelse:\n    A = None",
        ),
        (
            "try:\n\tfrom . import a\nexcept ImportError:\n\ta = 1",
            "try:\n\tfrom .. import a\nexcept ImportError:\n\ta = 1",
        ),
        ("class A:\n    ä = 1; from .config import x", "class A:\n    ä = 1; from ..config import x"),
        ("from . import config\r\nx = 1\r\n", "from .. import config\r\nx = 1\r\n"),
    ],
)
def test_imports_of_a_file_that_moves_into_a_folder_are_adapted_line_by_line(before: str, after: str) -> None:
    here = ModuleContext("shop.production.serve")
    assert relocate([before.encode()], ModuleContext("shop.production"), here, MOVES) == [after.encode()]
    assert rewritten(after, here) == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "from .client import Upstream, UpstreamError",
            "from .. import UpstreamError\nfrom ..upstream.client import Upstream",
        ),
        ("from . import client_config", "from . import host_config as client_config"),
        ("from . import client\n\nclient.UpstreamError", "from .. import UpstreamError\n\nUpstreamError"),
        ("from .client import (\n    UpstreamError,\n)", "from .. import (\n    UpstreamError,\n)"),
    ],
)
def test_names_that_moved_elsewhere_are_found_from_the_new_folder(before: str, after: str) -> None:
    here = ModuleContext("shop.production.serve")
    relocated = b"".join(relocate([before.encode()], ModuleContext("shop.production"), here, MOVES) or [])
    assert relocated.count(b"\n") == before.count("\n")
    assert rewritten(relocated.decode(), here) == after


def test_imports_of_a_file_that_moves_out_of_a_folder_and_into_a_renamed_package() -> None:
    source = b"from .listen import a\nfrom ..config import b\n"
    expected = [b"from .serve.listen import a\nfrom .config import b\n"]
    former, here = ModuleContext("shop.production.serve"), ModuleContext("store.production")
    assert relocate([source], former, here, RENAMED) == expected


def test_versions_with_a_syntax_error_stay() -> None:
    """All of them, so that the imports are not taken for edits."""
    versions = [b"from . import a\n", b"from . import a\ndef f(:\n"]
    assert relocate(versions, ModuleContext("shop"), ModuleContext("shop.inner"), MOVES) is None


def test_a_test_imports_the_package_by_absolute_names() -> None:
    here = ModuleContext("tests")
    assert rewritten("from shop.production.guard import Guard", here) == (
        "from shop.production.inbound.guard import Guard"
    )
    assert rewritten("from .production.smoke import stand_in", here) == "from .production.smoke import stand_in"
