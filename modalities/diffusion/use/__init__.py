"""What a person does with a student: draw samples."""
