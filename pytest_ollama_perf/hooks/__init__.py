"""The pytest side of a session: collection, the hooks around each test, signals, and the hooks offered to others."""
