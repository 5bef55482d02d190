"""A run: its places on disk (``layout``), units of results (``store``), phases, jobs, processes and progress.

The stages and everything above them import it. It imports ``recipe``, ``data``, ``models`` and ``protocols`` only.
"""
