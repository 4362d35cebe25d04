"""Chat: an answer's text, as it comes, told apart into content, reasoning and calls of tools."""
