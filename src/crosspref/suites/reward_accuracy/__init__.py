"""How often a reward and a judge agree (section 4.2, Table 1). Found by its name in ``suites.SUITES``."""
