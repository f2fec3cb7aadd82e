"""With SAN=1: a fault of memory in the module is found, and where it is."""
import pytest

from hosts import wait_until
from httpd import conf

PLANTED = "LoadModule rdma_module /build/planted/module/mod_rdma.so"


@pytest.mark.san
@pytest.mark.httpd(conf("RdmaEnable On\nRdmaIdleTimeout 1s", load=PLANTED))
def test_a_use_after_free_is_found(client):
    """In a module that has one: where the last of a connection is freed."""
    client.httpd.expect({"AH00051": None, "AH00052": None})
    client.fetch(100_000, by="write", alone=False)

    def report():
        return next((path for path in client.httpd.root.glob("sanitizer.*")
                     if "take_apart" in path.read_text()), None)
    path = wait_until(report, 20, "the sanitizer's report")
    assert "heap-use-after-free" in path.read_text()
    for path in client.httpd.root.glob("sanitizer.*"):
        path.unlink()
