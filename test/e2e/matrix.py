"""The support matrix: what httpd can do with a response, and the way its body
goes then. test_matrix.py asks for each row; docs/SUPPORT.md has the table.

    matrix.py    prints the table as the rows say it

A row is one request. Rows with the same `path` follow each other as they
stand here, which matters to the caches: {way} makes a URL of each way's own.
"""
import sys
from dataclasses import dataclass, field

from matrix_site import (BEFORE, CACHES, DATE, ETAG, FILE, LONG, PROGRAM, SIZE,
                         TEXT, USER, VARIANT)


@dataclass(frozen=True)
class Row:
    group: str
    name: str
    path: str
    fields: tuple = ()
    tcp: str = ""          # why the body goes over TCP; empty: by RDMA
    declined: str = None   # what the answer says then; None: nothing
    status: int = 200
    shows: dict = field(default_factory=dict)  # fields that prove the feature
    holds: bytes = b""     # and what the body has in it
    length: int = None     # and its length
    method: str = "GET"
    version: str = "1.1"
    host: str = "server"
    connection: tuple = ("RDMA",)  # the Connection lines; RDMA not without it
    body: str = ""
    via: str = "http"      # or tls, tls-open, pipeline, h2, h2-upgrade, and
                           # so test_matrix.Run asks
    interim: int = None    # a status that comes before
    differs: tuple = ()    # fields that two answers may have different
    boundary: bool = False # multipart: each answer has another boundary
    gzipped: bool = False  # how it is coded depends on how it came
    ordinal: int = 0

    @property
    def identity(self):
        return f"{self.group}-{self.name}".replace(" ", "_")

    def ask(self, way):
        """The request as rdma_peer's --asks has it."""
        lines = [f"{self.method} {self.path.format(way=way)} "
                 f"HTTP/{self.version}", f"Host: {self.host}"]
        for line in self.connection:
            options = [option for option in line.split(", ")
                       if way != "plain" or option != "RDMA"]
            if options:
                lines.append(f"Connection: {', '.join(options)}")
        if way != "plain":
            lines.append("RDMA: {rdma}")
        lines.append(f"X-Row: {self.ordinal}")
        lines += self.fields
        if self.body:
            lines += [f"Content-Length: {len(self.body)}", "", self.body]
        return "\t".join(lines)


ROWS = []


def _row(group, name, path, *fields, **more):
    ROWS.append(Row(group, name, path, fields, ordinal=len(ROWS), **more))


G = "Files"
_row(G, "a file", FILE, length=SIZE)
_row(G, "a file larger than the window", f"/{LONG}.bin", length=LONG)
_row(G, "with EnableSendfile On", f"/sendfile{FILE}", length=SIZE)
_row(G, "with EnableMMAP Off", f"/unmapped{FILE}", length=SIZE)
_row(G, "mod_file_cache, MMapFile", "/kept/mapped.bin", length=SIZE)
_row(G, "mod_file_cache, CacheFile", "/kept/opened.bin", length=SIZE)

G = "Unknown length"
_row(G, "CGI", "/programs/cat.cgi", length=PROGRAM)
_row(G, "CGI with Content-Length", "/programs/length.cgi", length=PROGRAM)
_row(G, "CGI with Content-Length, trusted", "/programs/trusted.cgi",
     length=PROGRAM)
_row(G, "FastCGI", "/fcgi/plain", length=PROGRAM)
_row(G, "FastCGI with Content-Length", "/fcgi/length", length=PROGRAM)
_row(G, "PHP-FPM", "/php/page.php", length=PROGRAM)
_row(G, "SSI", "/included/page.shtml", holds=b"a part\n")
_row(G, "SSI with a CGI in it", "/included/program.shtml", length=PROGRAM + 2)
_row(G, "mod_proxy_http, with length", f"/back{FILE}", length=SIZE)
_row(G, "mod_proxy_http, chunked", "/back/programs/cat.cgi", length=PROGRAM)
_row(G, "mod_proxy_http, until the connection's end", "/raw/until-close",
     length=PROGRAM)
_row(G, "mod_proxy_balancer", f"/balanced{FILE}", length=SIZE)
_row(G, "mod_lua", "/lua/puts.lua", length=PROGRAM)

G = "Ranges"
_row(G, "a single range", FILE, "Range: bytes=100-29999", status=206,
     shows={"Content-Range": f"bytes 100-29999/{SIZE}"}, length=29900)
_row(G, "a single byte", FILE, "Range: bytes=0-0", status=206, length=1)
_row(G, "a suffix", FILE, "Range: bytes=-5000", status=206, length=5000)
_row(G, "several ranges", FILE, "Range: bytes=0-999,20000-39998",
     status=206, holds=b"bytes 20000-39998/", boundary=True)
_row(G, "several ranges of a CGI's output", "/programs/cat.cgi",
     "Range: bytes=0-999,20000-39998", length=PROGRAM)
_row(G, "fifty ranges", FILE, "Range: bytes="
     + ",".join(f"{n * 700}-{n * 700 + 9}" for n in range(50)), status=206,
     holds=f"bytes 34300-34309/{SIZE}".encode(), boundary=True)
_row(G, "more ranges than MaxRanges", FILE, "Range: bytes="
     + ",".join(f"{n * 10}-{n * 10 + 1}" for n in range(201)), length=SIZE)
_row(G, "a range larger than the window", f"/{LONG}.bin",
     "Range: bytes=7-3000000", status=206, length=2999994)
_row(G, "unsatisfiable (416)", FILE, f"Range: bytes={SIZE}-", status=416,
     holds=b"Requested Range Not Satisfiable")
_row(G, "If-Range that matches", FILE, "Range: bytes=5-999",
     f"If-Range: {DATE}", status=206, length=995)
_row(G, "If-Range with the tag", FILE, "Range: bytes=5-999",
     f"If-Range: {ETAG}", status=206, length=995)
_row(G, "If-Range that does not", FILE, "Range: bytes=5-999",
     "If-Range: \"other\"", length=SIZE)

G = "Conditions"
_row(G, "not modified (304), If-None-Match", FILE, "If-None-Match: *",
     status=304, tcp="304 has no body")
_row(G, "not modified (304), a list of tags", FILE,
     f'If-None-Match: "other", W/{ETAG}', status=304, tcp="304 has no body")
_row(G, "not modified (304), If-Modified-Since", FILE,
     f"If-Modified-Since: {DATE}", status=304, tcp="304 has no body")
_row(G, "If-None-Match that does not match", FILE, "If-None-Match: \"other\"",
     length=SIZE)
_row(G, "If-Match with the tag", FILE, f'If-Match: "other", {ETAG}',
     length=SIZE)
_row(G, "If-Unmodified-Since that holds", FILE,
     f"If-Unmodified-Since: {DATE}", length=SIZE)
_row(G, "If-Unmodified-Since that does not (412)", FILE,
     f"If-Unmodified-Since: {BEFORE}", status=412, length=0,
     tcp="httpd sends no body with it")
_row(G, "precondition failed (412), with an ErrorDocument",
     f"/overridden{FILE}", "If-Match: \"other\"", status=412,
     holds=b"An error page of its own")
_row(G, "precondition failed (412)", FILE, "If-Match: \"other\"", status=412,
     length=0, tcp="httpd sends no body with it")

G = "Statuses and methods"
_row(G, "HEAD", FILE, method="HEAD", tcp="HEAD has no body")
_row(G, "204", "/programs/empty.cgi", status=204, tcp="204 has no body")
_row(G, "204 of a CGI that sends a body all the same", "/programs/204.cgi",
     status=204, tcp="204 has no body")
_row(G, "304 of a CGI that sends a body all the same", "/programs/304.cgi",
     status=304, tcp="304 has no body")
_row(G, "a status of its own (299)", "/programs/299.cgi", status=299,
     length=PROGRAM)
_row(G, "a length of zero", "/empty.bin", length=0, tcp="nothing to send")
_row(G, "no output at all, after a while", "/programs/nothing.cgi", length=0,
     tcp="nothing to send")
_row(G, "100, Expect: 100-continue on a GET", "/programs/stdin.cgi",
     "Expect: 100-continue", body="it was read", interim=100,
     holds=b"it was read")
_row(G, "Expect: 100-continue that nobody answers", "/lua/puts.lua",
     "Expect: 100-continue", body="never read", length=PROGRAM)
_row(G, "103 of a back end", "/raw/early", interim=103, length=PROGRAM)
_row(G, "POST", "/programs/stdin.cgi", method="POST", body="it was read",
     holds=b"it was read", tcp="not a GET")
_row(G, "TRACE", FILE, method="TRACE", tcp="not a GET",
     holds=b"X-Row")
_row(G, "OPTIONS", FILE, method="OPTIONS", tcp="not a GET",
     shows={"Allow": ".*GET.*"})
_row(G, "OPTIONS of the server", "*", method="OPTIONS", length=0,
     tcp="not a GET")
_row(G, "a GET with a body", FILE, body="never read", length=SIZE)
_row(G, "a GET with a body beyond LimitRequestBody (413)", f"/bounded{FILE}",
     body="more than it may be", status=413,
     holds=b"Request Entity Too Large")
_row(G, "a GET with a body that is no body (400)", FILE,
     "Transfer-Encoding: chunked", "", "no length", "", status=400,
     holds=b"Bad Request")
_row(G, "the same, mod_autoindex", "/listed/", "Transfer-Encoding: chunked",
     "", "no length", "", status=400, holds=b"Bad Request")
_row(G, "the same, found out after the answer", "/lua/puts.lua",
     "Transfer-Encoding: chunked", "", "no length", "", length=PROGRAM,
     connection=("close, RDMA",))

G = "Errors and redirects"
_row(G, "an error page of httpd", "/errors/nothing", status=404,
     holds=b"<h1>Not Found</h1>")
_row(G, "ErrorDocument, a file", "/errors/file/nothing", status=404,
     holds=b"An error page of its own")
_row(G, "ErrorDocument, a text", "/errors/text/nothing", status=404,
     holds=b"This text is the error page.")
_row(G, "ErrorDocument, a URL", "/errors/url/nothing", status=302,
     shows={"Location": f"http://server:8080{FILE}"})
_row(G, "ErrorDocument, a CGI", "/errors/program/nothing", status=404,
     holds=b"the program answers 404")
_row(G, "ErrorDocument, a back end", "/errors/back/nothing", length=SIZE)
_row(G, "ErrorDocument that is not there either", "/errors/loop/nothing",
     status=404, holds=b"Additionally, a 404 Not Found")
_row(G, "ErrorDocument of a 403", "/errors/denied/x", status=403,
     holds=b"An error page of its own")
_row(G, "ProxyErrorOverride", "/overridden/nothing", status=404,
     holds=b"An error page of its own")
_row(G, "a back end that is not there (503)", "/nobody/x", status=503,
     holds=b"Service Unavailable")
_row(G, "a head that httpd refuses (500)", f"/refused{FILE}", status=500,
     holds=b"Internal Server Error", tcp="RDMA is over when httpd does",
     declined="failed")
_row(G, "the head of a stream that httpd refuses (500)",
     f"/refused/{LONG}.bin", status=500, holds=b"Internal Server Error",
     tcp="RDMA is over when httpd does", declined="failed")
_row(G, "the same, with an error page in parts", f"/refused/own{FILE}",
     status=500, holds=b"first\na part\n", tcp="RDMA is over when httpd does",
     declined="failed")
_row(G, "the same of a stream", f"/refused/own/{LONG}.bin", status=500,
     holds=b"first\na part\n", tcp="RDMA is over when httpd does",
     declined="failed")
_row(G, "redirect of a directory (301)", "/index", status=301,
     shows={"Location": "http://server/index/"})
_row(G, "Redirect (mod_alias)", "/redirected", status=302,
     shows={"Location": f"http://server:8080{FILE}"})
_row(G, "mod_dir, an index", "/index/", length=SIZE)
_row(G, "mod_dir, FallbackResource", "/fallback/nothing", length=SIZE)
_row(G, "mod_actions", "/acted/it", holds=b"the action for /acted/it")
_row(G, "Location of a CGI, internal", "/programs/location.cgi", length=SIZE)
_row(G, "mod_alias", f"/aliased{FILE}", length=SIZE)

G = "The connection"
_row(G, "keep-alive", FILE, connection=("keep-alive, RDMA",), length=SIZE)
_row(G, "keep-alive, once too often (MaxKeepAliveRequests)", FILE, host="once",
     connection=("keep-alive, RDMA",), length=SIZE,
     shows={"Connection": ".*close.*"})
_row(G, "Connection: close", FILE, connection=("close, RDMA",), length=SIZE,
     shows={"Connection": ".*close.*"})
_row(G, "several Connection lines", FILE,
     connection=("keep-alive", "X-Hop, RDMA", "X-Other"), length=SIZE)
_row(G, "in another case", FILE, connection=("rDmA",), length=SIZE)
_row(G, "nokeepalive, unknown length", "/programs/nokeepalive.cgi",
     length=PROGRAM)
_row(G, "downgrade-1.0", "/programs/downgrade.cgi", length=PROGRAM,
     tcp="the field is of HTTP/1.1")
_row(G, "force-no-vary", "/programs/novary.cgi", length=PROGRAM,
     tcp="the field is of HTTP/1.1")
_row(G, "force-response-1.0, which is for HTTP/1.0", "/programs/force.cgi",
     length=PROGRAM)
_row(G, "a URL in absolute form", f"http://server{FILE}", length=SIZE)
_row(G, "trailers of a back end, which httpd drops", "/raw/trailers",
     length=PROGRAM)
_row(G, "trailers of a request", "/programs/stdin.cgi",
     "Transfer-Encoding: chunked", "", "b", "it was read", "0",
     "X-After: it came", "", "", holds=b"it was read")
_row(G, "HTTP/1.0", FILE, version="1.0", tcp="the field is of HTTP/1.1")
_row(G, "HTTP/1.0, keep-alive", FILE, version="1.0",
     connection=("keep-alive, RDMA",), tcp="the field is of HTTP/1.1")
_row(G, "the field not nominated", FILE, connection=("keep-alive",),
     tcp="an intermediary may have sent it on")
_row(G, "another option that begins so", FILE, connection=("R, RDM",),
     tcp="the field is not nominated")
_row(G, "an option that contains it", FILE, connection=("X-RDMA, RDMA2",),
     tcp="the field is not nominated")
_row(G, "two options without a comma", FILE, connection=("X-Hop RDMA",),
     tcp="the field is not nominated")
_row(G, "an Upgrade that httpd ignores", FILE, "Upgrade: something/7",
     connection=("Upgrade, RDMA",), length=SIZE)

G = "Content"
_row(G, "mod_deflate", "/squeezed/gzip/text.txt", "Accept-Encoding: gzip",
     shows={"Content-Encoding": "gzip", "Vary": "Accept-Encoding"})
_row(G, "mod_deflate, a client that cannot", "/squeezed/gzip/text.txt",
     length=TEXT)
_row(G, "mod_deflate of a CGI's output", "/squeezed/gzip/back/",
     "Accept-Encoding: gzip", shows={"Content-Encoding": "gzip"},
     gzipped=True)
_row(G, "mod_brotli", "/squeezed/brotli/text.txt", "Accept-Encoding: br",
     shows={"Content-Encoding": "br"})
_row(G, "a range of what mod_deflate made", "/squeezed/gzip/text.txt",
     "Accept-Encoding: gzip", "Range: bytes=10-500", status=206, length=491)
_row(G, "AddOutputFilterByType", "/typed/text.txt", "Accept-Encoding: gzip",
     shows={"Content-Encoding": "gzip"})
_row(G, "a file that is compressed", "/packed.bin.gz",
     shows={"Content-Encoding": "x-gzip"}, length=SIZE)
_row(G, "mod_filter", "/chosen/text.txt", "Accept-Encoding: gzip",
     shows={"Content-Encoding": "gzip"})
_row(G, "mod_substitute", "/substituted/text.txt",
     holds=b"LINE 2999 of a text")
_row(G, "mod_sed", "/edited/text.txt", holds=b"LINE 2999 of a text")
_row(G, "mod_ext_filter", "/upper/text.txt", holds=b"LINE 2999 OF A TEXT")
_row(G, "mod_bucketeer, with flushes", "/split/text.txt",
     length=27000)
_row(G, "mod_buffer", "/buffered/text.txt", length=TEXT)
_row(G, "mod_charset_lite", "/recoded/text.txt",
     holds="Übergröße\n".encode() * 2000)
_row(G, "mod_headers", f"/headed{FILE}", length=SIZE,
     shows={"X-Set": "one, two", "X-Always": "three"})
_row(G, "mod_headers on an error page", "/headed/nothing", status=404,
     shows={"X-Always": "three"})
_row(G, "ContentDigest", f"/headed/digest{FILE}", length=SIZE,
     shows={"Content-MD5": ".+=="})
_row(G, "mod_expires", f"/expiring{FILE}", length=SIZE,
     shows={"Expires": ".* 204[12] .*"}, differs=("Cache-Control",))
_row(G, "mod_asis", "/asis/page.asis", status=203, shows={"X-Asis": "yes"},
     length=9000)
_row(G, "mod_asis, chunked already", "/asis/coded.asis", length=5,
     holds=b"coded", tcp="httpd does not frame it",
     connection=("close, RDMA",))
_row(G, "CGI that makes the head, too (nph-)", "/programs/nph-it.cgi",
     length=PROGRAM, tcp="it goes past httpd's filters",
     connection=("close, RDMA",))
_row(G, "mod_rewrite, internal", "/rewritten/inside.bin", length=SIZE)
_row(G, "mod_rewrite, proxied", "/rewritten/proxied.bin", length=SIZE)
_row(G, "mod_rewrite, a redirect", "/rewritten/moved.bin", status=302,
     shows={"Location": f"http://server{FILE}"})
_row(G, "mod_rewrite, gone", "/rewritten/gone.bin", status=410)
_row(G, "mod_autoindex", "/listed/", holds=b'href="one.txt"')
_row(G, "mod_negotiation, MultiViews", "/views/page", "Accept-Language: de",
     shows={"Content-Language": "de", "TCN": "choice"},
     holds=b"Deutsch\n" * 500)
_row(G, "mod_negotiation, a type map", "/maps/page.var",
     "Accept-Language: de", shows={"TCN": "choice"},
     holds=b"Deutsch\n" * 500)
_row(G, "mod_negotiation, nothing acceptable (406)", "/maps/strict.var",
     "Accept: image/png", status=406)
_row(G, "mod_dav", f"/dav{FILE}", length=SIZE)
_row(G, "a back end that forges the field", "/raw/forged", length=PROGRAM)
_row(G, "mod_ratelimit", f"/limited{FILE}", length=SIZE,
     tcp="its limit is on the connection", declined="policy")

G = "Access and configuration"
_row(G, "mod_remoteip", f"/remote{FILE}", "X-Forwarded-For: 192.0.2.7",
     length=SIZE)
_row(G, "mod_reqtimeout, a body that does not come (408)",
     "/programs/stdin.cgi", "Content-Length: 5", host="hurried", status=408,
     holds=b"Request Timeout")
_row(G, "Basic authentication", f"/basic{FILE}", f"Authorization: Basic {USER}",
     length=SIZE)
_row(G, "Basic authentication, refused (401)", f"/basic{FILE}", status=401,
     shows={"WWW-Authenticate": 'Basic realm="matrix"'},
     holds=b"Unauthorized")
_row(G, "Digest authentication", f"/digest{FILE}", "Authorization: {digest}",
     length=SIZE, shows={"Authentication-Info": ".*rspauth=.*"})
_row(G, "Digest authentication, refused (401)", f"/digest{FILE}", status=401,
     shows={"WWW-Authenticate": 'Digest realm="matrix".*'},
     differs=("WWW-Authenticate",), holds=b"Unauthorized")
_row(G, "a virtual host by name", FILE, host="second", length=SIZE)
_row(G, "RdmaEnable in a Directory of a host without it", f"/second{FILE}",
     host="partly", length=SIZE)
_row(G, "RdmaEnable in .htaccess", f"/accessible{FILE}", length=SIZE)
_row(G, "below RdmaMinSize", f"/small{FILE}", length=SIZE,
     tcp="TCP is as good", declined="small")

for _name, _kind, _when in CACHES:
    G = (f"mod_cache_{_kind}, CacheQuickHandler "
         f"{'on' if _when == 'quick' else 'off'}")
    _hit = {"X-Cache": "HIT from .*"}
    _url = FILE + "?{way}"
    _of = {"host": _name, "differs": ("Age",)}
    _row(G, "a miss", _url, length=SIZE, shows={"X-Cache": "MISS from .*"},
         **_of)
    _row(G, "a hit", _url, length=SIZE, shows=_hit, **_of)
    _row(G, "a range of a hit", _url, "Range: bytes=100-29999", status=206,
         shows=_hit, length=29900, **_of)
    _row(G, "several ranges of a hit", _url, "Range: bytes=0-999,20000-39998",
         status=206, shows=_hit, boundary=True, **_of)
    _row(G, "not modified (304) by a hit", _url, "If-None-Match: *",
         status=304, shows=_hit, tcp="304 has no body", **_of)
    _row(G, "another miss", f"/second{_url}", length=SIZE,
         shows={"X-Cache": "MISS from .*"}, **_of)
    _row(G, "its revalidation", f"/second{_url}", "Cache-Control: max-age=0",
         shows={"X-Cache": "REVALIDATE from .*"}, length=SIZE, **_of)
    if _kind == "disk":  # the other has lost the body by now, over TCP too
        _row(G, "a hit after that", f"/second{_url}", shows=_hit, length=SIZE,
             **_of)
    _row(G, "a miss of unknown length", "/programs/short.cgi?{way}",
         shows={"X-Cache": "MISS from .*"}, length=SIZE // 2, **_of)
    if _kind == "disk":  # the other does not keep such a response
        _row(G, "a hit of it", "/programs/short.cgi?{way}", shows=_hit,
             length=SIZE // 2, **_of)
    for _seen in ("MISS", "HIT"):
        _row(G, f"mod_deflate, a {_seen.lower()}",
             "/squeezed/gzip/text.txt?{way}", "Accept-Encoding: gzip",
             shows={"X-Cache": f"{_seen} from .*", "Content-Encoding": "gzip"},
             **_of)
    if _kind == "disk":
        _url = "/programs/variant.cgi?{way}"
        for _variant, _language, _seen in (
                ("a variant (Vary)", "de", "MISS"),
                ("another variant", "en", "MISS"),
                ("a hit of that one", "en", "HIT")):
            _row(G, _variant, _url, f"Accept-Language: {_language}",
                 shows={"X-Cache": f"{_seen} from .*"}, length=VARIANT,
                 holds=f"{_language}\n".encode(), **_of)
        _url = f"/raw/flaky?{{way}}-{_name}"
        _row(G, "a miss of a back end", _url, length=PROGRAM, **_of)
        _row(G, "stale, as that fails now (CacheStaleOnError)", _url,
             "Cache-Control: max-age=0", shows={"Warning": "11[01] .*"},
             length=PROGRAM, **_of)

G = "TLS and HTTP/2"
_row(G, "mod_ssl", FILE, via="tls", length=SIZE,
     tcp="RDMA is not encrypted", declined="tls")
_row(G, "mod_ssl, RdmaOverTLS On", FILE, via="tls-open", length=SIZE)
_row(G, "HTTP/2", FILE, via="h2", length=SIZE,
     tcp="the field is of HTTP/1.1")
_row(G, "HTTP/2 by Upgrade", FILE, via="h2-upgrade", length=SIZE, interim=101,
     tcp="the field is of HTTP/1.1")

G = "Pipelined"
_via = {"via": "pipeline"}
_row(G, "a file", FILE, length=SIZE, **_via)
_row(G, "the field not nominated", FILE, connection=("keep-alive",),
     tcp="an intermediary may have sent it on", length=SIZE, **_via)
_row(G, "HEAD", FILE, method="HEAD", tcp="HEAD has no body", **_via)
_row(G, "not modified (304)", FILE, "If-None-Match: *", status=304,
     tcp="304 has no body", **_via)
_row(G, "a file larger than the window", f"/{LONG}.bin", length=LONG, **_via)
_row(G, "an error page of httpd", "/errors/nothing", status=404,
     holds=b"<h1>Not Found</h1>", **_via)
_row(G, "unknown length", "/programs/cat.cgi", length=PROGRAM, **_via)


def table():
    """The table, as the rows say it: lines."""
    return table_of({row.identity: {"write": expected(row),
                                    "read": expected(row)} for row in ROWS})


def expected(row):
    return "tcp" if row.tcp else "rdma"


def table_of(seen):
    """The table of what was seen: {identity: {way: rdma, tcp or FAIL}}."""
    lines = ["| feature | server-write | client-read | why not by RDMA |",
             "|---|---|---|---|"]
    group = None
    for row in ROWS:
        if row.identity not in seen:
            continue
        if row.group != group:
            group = row.group
            lines.append(f"| **{group}** | | | |")
        ways = seen[row.identity]
        lines.append(f"| {row.name} | {ways['write']} | {ways['read']} | "
                     f"{row.tcp} |")
    return lines


if __name__ == "__main__":
    print("\n".join(table()))
    sys.exit(0)
