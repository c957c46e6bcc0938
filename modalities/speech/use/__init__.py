"""What a person does with a student: transcribe files.

May import all of this modality but ``adapter``, beside the core. Public is the command ``transcribe``.
"""

PAGE = "README.md#train-a-compact-recogniser-on-real-recordings"
