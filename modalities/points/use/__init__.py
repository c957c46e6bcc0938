"""What a person does with a student: segment scans."""
