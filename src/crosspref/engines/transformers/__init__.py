"""Models through transformers: loading, sampling, scoring, translating, rating.

Other engines import ``models`` and ``adapters`` from here; the rest is imported by its name in ``engines.ENGINES``.
"""
