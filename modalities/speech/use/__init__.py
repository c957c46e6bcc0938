"""What a person does with a student, and with a teacher of sequences: transcribe or classify files, write texts.

May import all of this modality but ``adapter``, beside the core. Public are the commands ``transcribe``,
``classify-audio`` and ``pseudolabel``.
"""

PAGE = "README.md#train-a-compact-recogniser-on-real-recordings"
