"""Just enough of HTTP for the applications on trio and anyio, which bring no server of their own."""

from urllib.parse import parse_qs, urlsplit

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


def parse(head):
    """The name of what is asked for, and for how many milliseconds."""
    target = urlsplit(head.split(b" ")[1].decode())
    return target.path.strip("/"), int(parse_qs(target.query).get("ms", ["0"])[0])


async def converse(receive, send, handle):
    """Answers one request after the other, until the other side has none left."""
    received = b""
    while chunk := await receive():
        received += chunk
        while b"\r\n\r\n" in received:
            head, received = received.split(b"\r\n\r\n", 1)
            await handle(*parse(head))
            await send(ANSWER)
