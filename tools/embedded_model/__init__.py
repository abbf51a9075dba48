"""How the embedded model came to be: its text, its tokenizer, its training (``make model``)."""
