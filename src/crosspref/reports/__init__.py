"""What was measured, for people: the one table writer (`table`), a run's report, comparisons of runs, and audits.

Suites, the laboratory, the plan and the commands import it. It imports nothing from them.
"""
