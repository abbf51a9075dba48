"""How the embedded model is made: its text, its tokenizer and its pretraining (``make model``)."""
