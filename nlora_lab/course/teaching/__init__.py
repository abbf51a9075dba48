"""What a teacher makes from the course: a folder to install from without a network, and editions of the notebooks."""
