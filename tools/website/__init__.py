"""Makes the site: ``make site``. ``build.py`` assembles the sources and runs Sphinx, ``checks.py`` reads the result."""
