"""What a person does with a student: transcribe files."""
