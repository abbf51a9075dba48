"""The exercises with their solutions and hints, and answers to the closing questions: one file per notebook."""
