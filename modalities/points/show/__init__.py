"""Points as pictures, and on a run's page."""
