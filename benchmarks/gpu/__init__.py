"""All that a GPU must show, in one command of at most eight minutes: see ``__main__``."""
