"""What the server's children have done and hold: its own numbers."""
import http.client

from hosts import wait_until
from httpd import STATUS_PATH, STATUS_PORT


def ask(path=STATUS_PATH):
    """Status, fields and text of what a program on the server's host gets."""
    connection = http.client.HTTPConnection("127.0.0.1", STATUS_PORT, 30)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()
    finally:
        connection.close()


def parse(text):
    """Lines of "Key: value" as a dictionary of integers."""
    values = {}
    for line in text.splitlines():
        name, value = line.split(": ")
        assert name not in values, f"{name} comes twice"
        values[name] = int(value)
    return values


def status(_httpd=None):
    """The totals of all children, by the names of docs/STATUS.md. There is one
    server at a time."""
    code, _, text = ask(STATUS_PATH + "?auto")
    assert code == 200, f"{code}: {text}"
    return parse(text)


def changes(before, after=None):
    """What differs from a status() of before, without what does not; Memory
    aside, which is the engine's to choose."""
    after = after or status()
    return {name: after[name] - before[name] for name in after
            if after[name] != before[name] and not name.startswith("Memory")}


def wait_for(seconds=10, **wanted):
    """Until the totals have these values; the status then."""
    seen = {}

    def reached():
        seen.update(status())
        return all(seen[name] == value for name, value in wanted.items())
    try:
        wait_until(reached, seconds, "the status")
    except AssertionError:
        wrong = {name: seen[name] for name in wanted}
        raise AssertionError(f"status {wrong}, not {wanted}, within "
                             f"{seconds} s") from None
    return seen
