"""The program ``xmodal-kd``. Nothing heavy is imported before a command runs.

May import everything; nothing imports it. Public are the commands, their options and exit statuses, not the functions.
"""

PAGE = "README.md#what-is-in-the-box"
