"""Each program imports this module before all others, to start with less CPU time and memory.

If rich is installed, structlog imports it for tracebacks with local variables, which our programs never print. The
command line needs rich, but not structlog.
"""

import gc
import sys

# A start creates many objects and almost no garbage; by default, Python would collect garbage 500 times.
gc.set_threshold(10_000)

if "structlog" not in sys.modules and "rich" not in sys.modules:
    sys.modules["rich"] = None  # type: ignore[assignment]  # says that there is none
    import structlog  # noqa: F401 - loaded now, without rich

    del sys.modules["rich"]
