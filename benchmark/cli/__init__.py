"""The command line. One module a command; `main` loads a command's module when it is called."""
