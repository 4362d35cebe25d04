"""Text: tokenizer, detokenizer, chat templates, stop strings."""
