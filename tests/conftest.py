"""For all tests: signals as a terminal gives them."""

from __future__ import annotations

import signal

# A shell that runs the tests in the background has SIGINT ignored, children inherit that, and those that are
# tested to stop on Ctrl-C never would.
signal.signal(signal.SIGINT, signal.default_int_handler)
