"""The composition root: the room that sees both sides. Command line, in-process grid, data sets, reports."""
