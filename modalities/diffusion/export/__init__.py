"""Pipelines as diffusers loads them: weights, scheduler, card, lint and reload gate.

May import ``show``, ``evaluate`` and what it may, beside the core. Public are the files of a saved pipeline.
"""
