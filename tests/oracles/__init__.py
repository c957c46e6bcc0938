"""Slow answers to compare fast code with: float64 loops from the formula, written without reading what they test."""
