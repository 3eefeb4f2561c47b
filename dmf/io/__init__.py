"""Matrices and models on disk: read and written block by block, inside tasks."""
