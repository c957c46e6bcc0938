"""Points as pictures, and on a run's page.

May import ``export``, ``evaluate`` and what it may, beside the core. Public is nothing.
"""
