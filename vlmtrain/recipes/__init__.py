"""Recipes packaged as YAML."""
