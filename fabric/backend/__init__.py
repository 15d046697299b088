"""What backend types need besides the calculation: the data in our own lease, and the extension backend's commands.

Theory of operation. A backend type has four sides. Its keys in `net-conf.json` are `fabric.config`'s, the ways by which
peers are reached `fabric.calc`'s, and data path and kernel do what that says. What is left is here: `published` says
what our lease carries for a type, `command` runs a program of the administrator's, and `extension` decides which of
them to run for which peer.

The extension backend is level-triggered like everything else: it is told which peers there are, compares that with what
its commands have succeeded for, and runs the difference, each peer by itself. A command that fails is tried again, ever
less often, and delays nobody else.

No shell is ever involved. A command is cut at white space, `$NAME` and `${NAME}` are replaced from the environment, and
what a peer published reaches a command on standard input only (CVE-2026-32241 was a node annotation that flannel
handed to `sh -c`).

Limits: peers that vanished while the daemon was not running are not removed, as in flannel; there is no command for the
end of the daemon; a command that leaves children behind which hold its output open counts as running.
"""
