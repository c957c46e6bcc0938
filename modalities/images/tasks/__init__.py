"""Adapters of this modality's further tasks; ``adapter.py`` chooses by the recipe's ``data.task``.

May import ``show``, ``export``, ``evaluate``, ``losses``, ``models`` and ``data``, beside the core. Public are the
adapters.
"""
