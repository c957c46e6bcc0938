"""The contract of a modality, what it shows on a run's page, and what it keeps of a saved model.

May import ``signals`` and ``runtime``. Public are `Adapter`, `Evaluation` and `Score` (``adapter``), `Source`, `Batch`
and `Strict` (``source``).
"""
