"""Few-step methods: steps halved, consistency, mean velocities, straightened paths, samples moved by a critic.

May import ``models`` and ``data``, beside the core. Public are the names in recipes and their parameters.
"""
