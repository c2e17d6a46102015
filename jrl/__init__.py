"""jrl: functional reinforcement learning in JAX, from bandits to reasoning language models."""
