"""Few-step methods: progressive distillation, consistency distillation and training."""
