"""valueguide: value-guided deployment of vision-language-action policies.

A frozen policy proposes K action chunks, a learned critic picks one, a safety gate lets it
through, and everything that happened is logged so that the critic gets better from it.
See docs/architecture.md for the map of the packages.
"""

__version__ = "0.1.0"
