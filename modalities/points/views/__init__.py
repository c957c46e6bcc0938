"""What one side sees of a frame, and which of its rows shows which point of another view."""
