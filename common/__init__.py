"""What client and server must agree on: config, errors, wire, model, split, preferences, masking primitives."""
