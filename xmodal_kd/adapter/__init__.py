"""The contract of a modality, what it shows on a run's page, and what it keeps of a saved model.

May import ``runtime`` and ``signals``. Public are `Adapter`, `Source`, `Strict`, `Batch`, `Evaluation` and
`Score` (``adapter``).
"""
