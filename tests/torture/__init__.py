"""Torture: what no one should do to a run, drawn anew by every seed. ``python -m torture`` from ``tests``."""
