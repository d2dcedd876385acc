"""What makes a release: its version, its files and what proves them. Not part of the package.

``make version VERSION=...``, ``make release`` and ``make audit`` run the modules here; see CONTRIBUTING.md.
"""
