"""How the models that ship are made: their text, their tokenizer and their pretraining (``make models``)."""
