"""What both sides must agree on: config, errors, wire, model, split, preferences, masking primitives."""
