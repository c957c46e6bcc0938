"""Frames of LiDAR and cameras: simulated, recorded, read from files; the batches of a split."""
