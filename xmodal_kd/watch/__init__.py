"""A page that shows a run while it is at work: what its folder says, drawn as a report is, growing in a browser.

May import ``report`` and what it may, and imports no torch. Public is the command ``watch``, not the functions.
"""

PAGE = "docs/watch.md#watching-a-run"
