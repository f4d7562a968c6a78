"""The device: the agent (trust boundary), its vault and training, and the thin Flower ClientApp that relays to it."""
