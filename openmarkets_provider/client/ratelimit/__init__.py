"""Rate limits: holds, which all callers share after a 429, and the pace of one run."""
