"""Row templates (YAML) and chat templates (Jinja) shipped with the toolkit."""
