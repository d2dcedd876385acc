"""Fuzzing of all that reads bytes or data from outside: one file a family, each a few hundred examples in a usual run.

``make fuzz FUZZ_MINUTES=5`` gives every target minutes of its own. What must hold everywhere: an error is one of ours
(or the one that the docstring names), its text is short, and neither memory nor work grows beyond the input's size.
"""
