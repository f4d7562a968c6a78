"""The device: the agent (trust boundary), its vault and training, the thin Flower ClientApp before it."""
