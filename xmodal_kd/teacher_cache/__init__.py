"""A teacher that runs once: its signals on disk, and put back beside the student's.

``content`` says what a teacher saw, ``codecs`` how rows are written, ``entries`` which rows belong to which item,
``store`` holds the LMDB environments and ``manifest`` what is in one, ``source`` is a training set that reads them,
``fill`` the teacher's one pass, ``folder`` signals that travel, ``imported`` and ``exported`` the two ways,
``own_rows`` what a term resamples, ``session`` a training's use of it all, ``measure`` what it was worth. The recipe's
section is in ``recipe``, the verb in ``cli``. May import ``training`` and what it may. Public are the recipe's keys.
"""

PAGE = "recipes/README.md#a-teacher-on-disk"
