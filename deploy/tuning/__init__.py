"""`penchant tune`: a search for good settings on any data, judged on validation pairs."""
