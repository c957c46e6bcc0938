"""A graph: simulated or of a file, its splits, and batches of nodes with their neighbourhoods.

May import the core alone. Public are the recipe's data section and its source.
"""

PAGE = "docs/own_data.md#graphs-nodes-of-a-class-each"
