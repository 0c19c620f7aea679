"""The pytest plugin: hooks hand over to one registered object. Nothing heavy is imported here."""
