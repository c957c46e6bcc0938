"""Streets without a dataset: worlds by seed, and the scans and pictures that sensors take in them."""
