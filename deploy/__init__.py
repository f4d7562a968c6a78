"""The composition root: the one room that sees both sides. Command line, in-process grid, data sets, reports."""
