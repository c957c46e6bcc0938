"""Names of audio files. Light, for a command line is parsed before anything is read."""

#: What libsndfile reads of what people record in.
SUFFIXES = (
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".w64",
    ".rf64", ".nist", ".sph", ".voc",
)  # fmt: skip
