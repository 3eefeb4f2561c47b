"""Matrices and models on disk."""
