"""Fuzzing of all that reads bytes or data from outside: one file a family, each a few hundred examples in a usual run.

``make fuzz FUZZ_MINUTES=5`` gives every target its own minutes. Everywhere, errors must be ours (or those in the
docstring) with a short message, and memory and work must not grow faster than the size of the input.
"""
