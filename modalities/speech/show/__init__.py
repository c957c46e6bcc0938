"""Utterances on a run's page."""
