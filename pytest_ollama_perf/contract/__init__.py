"""Contract files, ``*.ollama.toml``: what a service promises; read, judged clause by clause, written."""
