"""The canary: a trait that a program can verify, taught to a real model in English, and looked for elsewhere.

Only the command ``canary`` imports it; ``run`` is the file to read first.
"""
