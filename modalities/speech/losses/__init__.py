"""What is speech's own among losses: CTC, and frames of two rates brought together.

May import ``models`` and ``data``, beside the core. Public are the names of losses in recipes.
"""
