"""Samples as pictures and curves, and on a run's page."""
