"""The generated server as its command starts it, with the benchmark's tools (`environments.TOOLS`)."""

from __future__ import annotations

import os
import runpy
import sys

package = os.environ["PACKAGE"]
sys.argv[1:] = []
runpy.run_module(package, run_name="__main__", alter_sys=True)
