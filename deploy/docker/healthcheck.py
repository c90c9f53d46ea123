"""Exit with 0 if the service in this container is ready for work.

This runs every few seconds: a socket needs a fraction of the time that importing an HTTP library takes.
"""

import os
import socket
import sys

REQUEST = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
TIMEOUT_S = 3


def status(port: int) -> int:
    """Return the status of /readyz. Raises OSError, ValueError."""
    with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as connection:
        connection.sendall(REQUEST)
        return int(connection.makefile("rb").readline().split(maxsplit=2)[1])


if __name__ == "__main__":
    sys.exit(status(int(os.environ["TINYRM_PORT"])) != 200)
