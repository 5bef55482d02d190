"""The judge: questions and how answers are read, the log of verdicts, and asking within a budget.

The suites that are judged import it; it knows none of them.
"""
