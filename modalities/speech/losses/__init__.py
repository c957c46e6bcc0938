"""What is speech's own among losses: CTC, and frames of two rates brought together."""
