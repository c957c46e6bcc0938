"""Pipelines as diffusers loads them: weights, scheduler, card, lint and reload gate."""
