"""Names and coverage of concepts."""
