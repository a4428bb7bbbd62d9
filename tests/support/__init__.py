"""What the tests share: models, servers and processes made for them, and assertions."""
