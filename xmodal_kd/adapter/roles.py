"""What the name of a role says. Light: pages are made of role names where torch is not loaded."""

from __future__ import annotations


def is_teacher(role: str) -> bool:
    """Whether a role is the recipe's teacher or a further one, ``teacher-<name>``; all others are students."""
    return role == "teacher" or role.startswith("teacher-")


__all__ = ["is_teacher"]
