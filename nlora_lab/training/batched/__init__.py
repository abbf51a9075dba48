"""Batched training: several adapters on one frozen base model, in one loop."""
