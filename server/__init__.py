"""The server: the round, cohorts, aggregation, its role in secure aggregation, the journal."""
