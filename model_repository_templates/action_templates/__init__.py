"""Jinja2 templates of the files that are written into a model repository."""
