"""Models, servers, processes and assertions that the tests share."""
