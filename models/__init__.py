"""Pyro models with the real data they are for."""
