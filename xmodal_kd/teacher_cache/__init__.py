"""A teacher that runs once: its signals on disk, and put back beside the student's.

`config` is the recipe's section, `codecs` how rows are written, `entries` which rows belong to which item, `store` the
LMDB environments, `source` a training set that reads them, `fill` the teacher's one pass, `session` a training's use of
it all, `measure` what it was worth, `command` the verb ``cache``.
"""
