"""Images of any size, what is taken from them, and the samples of the task restoration."""
