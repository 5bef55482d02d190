"""Tables for people: on screen, as Markdown, CSV and LaTeX; comparisons and audits of runs."""
