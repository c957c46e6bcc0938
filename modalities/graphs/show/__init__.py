"""Nodes on a run's page.

May import ``evaluate``, ``models`` and ``data``, beside the core. Public are the panels.
"""
