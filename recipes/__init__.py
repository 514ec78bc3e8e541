"""Recipes shipped with the toolkit, one YAML file each."""
