"""Differential privacy: exact noise, rounding with a proved norm, what a sum costs; proofs.md says why."""
