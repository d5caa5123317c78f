"""Rows and text: manifests, unit rows, instruction rows, corpus readers. Imports no torch."""
