"""Speech to discrete units: encoder, codebook, deduplication, batch encoding, unit quality."""
