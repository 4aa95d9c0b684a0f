"""The recipe: its model, fragments, overrides and the YAML that users write."""
