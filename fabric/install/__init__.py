"""`fabricctl install` and `uninstall`: this distribution as a service of the host, or in a staged root directory.

    environment    the running distribution and what it requires, copied into an environment of its own
    layout         where everything goes
    steps          what is put there and taken away, each step idempotent, with a line for people

Nothing is downloaded: what runs here is what gets installed. Limits: Linux with systemd; the interpreter is the host's,
of the same version as the running one.
"""
