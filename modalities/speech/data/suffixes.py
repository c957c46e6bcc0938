"""Names of audio files. Light, for a command line is parsed before anything is read."""

from __future__ import annotations

from pathlib import Path

#: What libsndfile reads of what people record in.
SUFFIXES = (
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".w64",
    ".rf64", ".nist", ".sph", ".voc",
)  # fmt: skip
#: Recordings too, which it does not read: they are told of, not passed over in silence.
UNREAD = (".m4a", ".mp4", ".aac", ".webm", ".mka", ".wma", ".amr", ".3gp", ".mov", ".wv", ".ape", ".dsf")
#: What to do with them.
CONVERT = "convert it (ffmpeg -i FILE FILE.flac)"


def is_sound(path: Path) -> bool:
    """Whether a file is taken for a recording that lies in a folder: by its name, and none of macOS's ``._NAME``.

    A link that leads nowhere is, so that whoever reads it says so.
    """
    named = path.suffix.lower() in SUFFIXES and not path.name.startswith("._")
    return named and (path.is_file() or not path.exists())


__all__ = ["CONVERT", "SUFFIXES", "UNREAD", "is_sound"]
