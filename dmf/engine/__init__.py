"""The engine: the only place that knows Dask, and it knows no mathematics.

It cuts X into a grid of blocks (`grid`, `data`), turns what a solver says into tasks
(`trace`, `lower`), runs rounds until it's time to stop (`rounds`), on threads or on a
cluster (`runner`), and hands out arrays (`arrays`).
"""
