"""Few-step methods: progressive distillation, consistency distillation and training.

May import ``models`` and ``data``, beside the core. Public are the names in recipes and their parameters.
"""
