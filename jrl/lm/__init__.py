"""Language models: the transformer, its weights and tokens, sampling and rewards."""
