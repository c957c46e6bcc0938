"""The judge: a classifier's features, distances between sets, curves over step counts."""
