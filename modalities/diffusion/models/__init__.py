"""Networks, diffusion processes and solvers, and the denoiser that joins them.

May import ``data``, beside the core. Public are the names of models and solvers in recipes.
"""
