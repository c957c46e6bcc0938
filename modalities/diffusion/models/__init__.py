"""Networks, diffusion processes and solvers, and the denoiser that joins them."""
