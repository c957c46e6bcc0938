"""What a person does with a student: segment scans.

May import all of this modality but ``adapter``, beside the core. Public are the commands ``segment`` and ``simulate``.
"""

PAGE = "modalities/points/README.md#using-a-student"
