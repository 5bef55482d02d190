"""The steps of Algorithm 1, one concept each: what a table's rows are, and the phase that fills the table.

``algorithm`` puts the phases in order; suites, lab, plan and commands call single functions. A stage knows engines by
their protocols only.
"""
