"""From logits to transcripts to error rates."""
