"""Children of the program that a fork server forks: a process that has imported what they need of atasks, which is
most of what an interpreter does before it can work.

The server is an interpreter that the program starts, and has nothing of it but its surroundings: `serving.py` runs
there. Its children import the modules of the user, so that those cannot give the server a second thread. Where
there is no server, or none that fits, an interpreter is started.
"""
