"""A saved classifier at work.

May import what the adapter may, except the adapter. Public is the command that ``COMMANDS`` names.
"""
