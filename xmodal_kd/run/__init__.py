"""A whole run: which models are trained, each from what and on which samples; evaluation, report, export; again later.

May import ``schemes``, ``compress``, ``teacher_cache`` and what these may, but no modality: those are found by name.
Public are only the files that a run leaves.
"""

PAGE = "docs/reliability.md#what-was-tried-to-break-it"
