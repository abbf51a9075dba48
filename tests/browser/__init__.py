"""The labs in a real page: a JupyterLab of its own, a browser, and what a person does there.

This is a package so that its fixtures end with it: while Playwright is open, its event loop counts as
running in this thread, and later tests could not start one of their own.
"""
