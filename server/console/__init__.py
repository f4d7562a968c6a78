"""The operator's console: pages over the journals of a fleet's runs, for a browser."""
