"""Frames of LiDAR and cameras: simulated, recorded, read from files; the batches of a split.

May import the core alone. Public are the keys of the recipe's ``data`` section.
"""

PAGE = "docs/own_data.md#points-scans"
