"""What a person does with a student: draw samples.

May import all of this modality but ``adapter``, beside the core. Public is the command ``sample``.
"""

PAGE = "modalities/diffusion/README.md#what-a-run-leaves"
