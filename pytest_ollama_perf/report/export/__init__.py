"""Files for other tools: each module writes one format from the document of a session."""
