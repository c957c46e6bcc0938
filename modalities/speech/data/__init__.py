"""Recordings and transcripts: files, manifests, features, augmentation, the batches of a split."""
