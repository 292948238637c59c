"""Curvature of a log-likelihood: products, diagonals, matrices and Kronecker factors. One file a shape."""
