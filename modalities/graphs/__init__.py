"""Nodes of one graph, each of one class: graph networks teach students that do without neighbours, or with few.

Nothing heavy is imported until the adapter is asked for. May import the core below ``run``, and no other modality.
Public is `ADAPTER`, which the core finds by the folder's name.
"""

PAGE = "docs/own_data.md#graphs-nodes-of-a-class-each"
ADAPTER = "adapter:GraphsAdapter"
