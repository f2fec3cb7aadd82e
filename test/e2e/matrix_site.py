"""The server of the support matrix: its configuration, and what it serves."""
import base64
import hashlib
import os
import shutil
import subprocess

from content import make
from httpd import MODULES

LOADED = """alias actions asis auth_basic auth_digest authn_core authn_file
authz_host authz_user autoindex brotli bucketeer buffer cache cache_disk cache_socache
cgid charset_lite dav dav_fs deflate env expires ext_filter file_cache filter
headers http2 include lbmethod_byrequests lua negotiation proxy proxy_balancer
proxy_fcgi proxy_http ratelimit remoteip reqtimeout rewrite sed setenvif
slotmem_shm socache_shmcb ssl substitute""".split()

BACK_END = 8090   # httpd itself, behind mod_proxy_http
RAW = 8091        # backends.Raw, what httpd would not answer
HTTP2 = 8092
FCGI = 8094       # backends.Fcgi
PHP = 8095        # backends.php_fpm
TLS = 8443
TLS_OPEN = 8444   # RdmaOverTLS On

SIZE = 40000
PROGRAM = 200_000
VARIANT = 30_000
LONG = 3 << 20    # more than the window, and more than is kept
WHEN = 1_640_995_200
DATE = "Sat, 01 Jan 2022 00:00:00 GMT"
BEFORE = "Fri, 31 Dec 2021 00:00:00 GMT"
FILE = f"/{SIZE}.bin"
ETAG = f'"{SIZE:x}-{WHEN * 1_000_000:x}"'  # of FILE: size and time
LINES = 3000
TEXT = sum(len(f"line {n} of a text\n") for n in range(LINES))
USER = base64.b64encode(b"user:secret").decode()

FOLDERS = """. acted asis basic bounded chosen dav digest edited expiring fallback
headed headed/digest included index kept limited listed lua maps php
programs recoded refused refused/own remote rewritten second sendfile small split squeezed/brotli
squeezed/gzip substituted typed unmapped upper views accessible
buffered""".split()

CACHES = [(f"{kind}-{when}", kind, when) for kind in ("disk", "socache")
          for when in ("quick", "late")]


def _cache_host(name, kind, when):
    return f"""
<VirtualHost *:8080>
    ServerName {name}
    DocumentRoot SITE/matrix
    CacheQuickHandler {"on" if when == "quick" else "off"}
    CacheEnable {kind} /
    CacheRoot SITE/matrix-var/{name}
    CacheSocache shmcb:matrix-{name}(8388608)
    CacheHeader on
    CacheStaleOnError on
    <Location />
        Header set Cache-Control max-age=600
    </Location>
    <Location /programs/variant.cgi>
        Header set Vary Accept-Language
    </Location>
</VirtualHost>
"""


def _tls_host(port, rdma):
    return f"""
Listen {port}
<VirtualHost *:{port}>
    ServerName server
    DocumentRoot SITE/matrix
    SSLEngine on
    SSLCertificateFile SITE/matrix-var/tls.pem
    RdmaOverTLS {rdma}
</VirtualHost>
"""


CONF = "".join(f"LoadModule {name}_module {MODULES}/mod_{name}.so\n"
               for name in LOADED) + f"""
RdmaEnable On
RdmaMinSize 1
LogFormat "%{{X-Row}}i %{{local}}p %>s %b %O %{{RDMA_MODE}}n %{{RDMA_BYTES}}n \
%{{RDMA_DECLINED}}n" matrix
CustomLog matrix.log matrix
AddType text/html .html .shtml
AddType text/plain .txt
AddEncoding x-gzip .gz
MaxKeepAliveRequests 0
RequestReadTimeout header=20-40,MinRate=500 body=20,MinRate=500
ScriptSock matrix.sock
Mutex file:SITE/matrix-var
SSLSessionCache shmcb:matrix-tls(512000)
DavLockDB SITE/matrix-var/dav
MMapFile SITE/matrix/kept/mapped.bin
CacheFile SITE/matrix/kept/opened.bin
ExtFilterDefine upper mode=output cmd="/usr/bin/tr a-z A-Z"
ProxyTimeout 20

<Directory SITE/matrix>
    Require all granted
</Directory>
<Location /programs>
    Options +ExecCGI
    SetHandler cgi-script
</Location>
<Location /programs/trusted.cgi>
    SetEnv ap_trust_cgilike_cl 1
</Location>
<Location /programs/nokeepalive.cgi>
    SetEnv nokeepalive 1
</Location>
<Location /programs/downgrade.cgi>
    SetEnv downgrade-1.0 1
</Location>
<Location /programs/novary.cgi>
    SetEnv force-no-vary 1
</Location>
<Location /programs/force.cgi>
    SetEnv force-response-1.0 1
</Location>
<Location /fcgi>
    SetHandler proxy:fcgi://127.0.0.1:{FCGI}/
</Location>
<FilesMatch "\\.php$">
    SetHandler proxy:fcgi://127.0.0.1:{PHP}
</FilesMatch>
<Location /included>
    Options +Includes
    SetOutputFilter INCLUDES
</Location>
ProxyPass /back/ http://127.0.0.1:{BACK_END}/
ProxyPass /raw/ http://127.0.0.1:{RAW}/
ProxyPass /overridden/ http://127.0.0.1:{BACK_END}/
ProxyPass /balanced/ balancer://matrix/
<Proxy balancer://matrix>
    BalancerMember http://127.0.0.1:{BACK_END}
</Proxy>
ProxyPass /nobody/ http://127.0.0.1:1/ retry=0
ProxyPass /squeezed/gzip/back/ http://127.0.0.1:{BACK_END}/programs/text.cgi
Alias /aliased SITE/matrix/second
Redirect /redirected http://server:8080{FILE}
<Location /overridden>
    ProxyErrorOverride On
    ErrorDocument 404 /error.html
    ErrorDocument 412 /error.html
</Location>
<Directory SITE/matrix/fallback>
    FallbackResource {FILE}
</Directory>

<Location /errors/file>
    ErrorDocument 404 /error.html
</Location>
<Location /errors/text>
    ErrorDocument 404 "This text is the error page."
</Location>
<Location /errors/url>
    ErrorDocument 404 http://server:8080{FILE}
</Location>
<Location /errors/program>
    ErrorDocument 404 /programs/error.cgi
</Location>
<Location /errors/back>
    ErrorDocument 404 /back{FILE}
</Location>
<Location /errors/loop>
    ErrorDocument 404 /errors/loop/again
</Location>
<Location /errors/denied>
    Require all denied
    ErrorDocument 403 /error.html
</Location>

<Location /acted>
    Action matrix /programs/action.cgi virtual
    SetHandler matrix
</Location>
<Location /squeezed/gzip>
    SetOutputFilter DEFLATE
</Location>
<Location /squeezed/brotli>
    SetOutputFilter BROTLI_COMPRESS
</Location>
<Location /chosen>
    FilterDeclare squeeze CONTENT_SET
    FilterProvider squeeze DEFLATE "%{{CONTENT_TYPE}} =~ m#^text/plain#"
    FilterChain squeeze
</Location>
<Location /typed>
    AddOutputFilterByType DEFLATE text/plain
</Location>
<Location /split>
    SetOutputFilter BUCKETEER
</Location>
<Location /headed/digest>
    ContentDigest On
</Location>
<Location /substituted>
    SetOutputFilter SUBSTITUTE
    Substitute s/line/LINE/n
</Location>
<Location /edited>
    SetOutputFilter Sed
    OutputSed s/line/LINE/g
</Location>
<Location /upper>
    SetOutputFilter upper
</Location>
<Location /buffered>
    SetOutputFilter BUFFER
</Location>
<Location /recoded>
    CharsetSourceEnc ISO-8859-1
    CharsetDefault UTF-8
    CharsetOptions ImplicitAdd
</Location>
<Location /headed>
    Header set X-Set one
    Header append X-Set two
    Header always set X-Always three
    Header unset Last-Modified
</Location>
<Location /expiring>
    ExpiresActive On
    ExpiresDefault "modification plus 20 years"
</Location>
<Location /limited>
    SetOutputFilter RATE_LIMIT
    SetEnv rate-limit 4000
</Location>
<Location /asis>
    SetHandler send-as-is
</Location>
<Location /lua>
    SetHandler lua-script
</Location>
<Location /small>
    RdmaMinSize 1M
</Location>
<Location /bounded>
    LimitRequestBody 10
</Location>
<Location /refused>
    Header set X-Control "a\x01b"
</Location>
<Location /refused/own>
    ErrorDocument 500 /included/error.shtml
</Location>
<Location /included/error.shtml>
    RdmaMinSize 64K
</Location>
<Location /remote>
    Require ip 192.0.2.7
</Location>
<Directory SITE/matrix/sendfile>
    EnableSendfile On
</Directory>
<Directory SITE/matrix/unmapped>
    EnableMMAP Off
</Directory>
<Directory SITE/matrix/rewritten>
    RewriteEngine On
    RewriteBase /
    RewriteRule ^inside\\.bin$ {FILE} [L]
    RewriteRule ^proxied\\.bin$ http://127.0.0.1:{BACK_END}{FILE} [P]
    RewriteRule ^moved\\.bin$ {FILE} [R=302,L]
    RewriteRule ^gone\\.bin$ - [G]
</Directory>
<Directory SITE/matrix/listed>
    Options +Indexes
    IndexOptions FancyIndexing
</Directory>
<Directory SITE/matrix/views>
    Options +MultiViews
    AddLanguage de .de
    AddLanguage en .en
    LanguagePriority en
</Directory>
<Directory SITE/matrix/maps>
    AddHandler type-map .var
</Directory>
<Location /dav>
    Dav On
</Location>
<Location /basic>
    AuthType Basic
    AuthName matrix
    AuthUserFile SITE/matrix-var/basic
    Require valid-user
</Location>
<Location /digest>
    AuthType Digest
    AuthName matrix
    AuthUserFile SITE/matrix-var/digest
    Require valid-user
</Location>
<Directory SITE/matrix/accessible>
    AllowOverride Options
    RdmaEnable Off
</Directory>

<VirtualHost *:8080>
    ServerName server
    DocumentRoot SITE/matrix
    RemoteIPHeader X-Forwarded-For
    RemoteIPInternalProxy 10.77.0.0/16 127.0.0.1
</VirtualHost>
<VirtualHost *:8080>
    ServerName once
    DocumentRoot SITE/matrix
    MaxKeepAliveRequests 1
</VirtualHost>
<VirtualHost *:8080>
    ServerName hurried
    DocumentRoot SITE/matrix
    RequestReadTimeout body=1
</VirtualHost>
<VirtualHost *:8080>
    ServerName second
    DocumentRoot SITE/matrix/second
</VirtualHost>
<VirtualHost *:8080>
    ServerName partly
    DocumentRoot SITE/matrix
    RdmaEnable Off
    <Directory SITE/matrix/second>
        RdmaEnable On
    </Directory>
</VirtualHost>
Listen 127.0.0.1:{BACK_END}
<VirtualHost 127.0.0.1:{BACK_END}>
    ServerName back
    DocumentRoot SITE/matrix
</VirtualHost>
Listen {HTTP2}
<VirtualHost *:{HTTP2}>
    ServerName server
    DocumentRoot SITE/matrix
    Protocols h2c http/1.1
</VirtualHost>
""" + _tls_host(TLS, "Off") + _tls_host(TLS_OPEN, "On") \
    + "".join(_cache_host(*cache) for cache in CACHES)

# What the rows bring about in the error log, any number of times.
EXPECTED = ["AH00690",  # nothing acceptable
            "AH00957", "AH01114",  # a back end that is not there
            "AH01270",  # a request's body that does not come
            "AH01630",  # denied by the configuration, as a row wants it
            "AH02430",  # a field that httpd refuses to send
            "AH01882"]  # mod_ssl was built with another release of OpenSSL


# ---- its files -------------------------------------------------------------

def _text(lines):
    return "".join(f"line {number} of a text\n" for number in range(lines))


def _program(root, name, text):
    path = root / "programs" / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def build(site):
    """The site's files and what the server needs beside them."""
    root, var = site / "matrix", site / "matrix-var"
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True, exist_ok=True)
    var.mkdir(exist_ok=True)
    var.chmod(0o777)
    for name, _, _ in CACHES:
        (var / name).mkdir(exist_ok=True)
        (var / name).chmod(0o777)
    body = make(SIZE)
    for folder in ("", "sendfile", "unmapped", "headed", "headed/digest", "expiring",
                   "limited", "small", "dav", "basic", "digest",
                   "accessible", "second", "remote", "buffered", "bounded",
                   "refused", "refused/own"):
        (root / folder / f"{SIZE}.bin").write_bytes(body)
    for name in ("mapped", "opened"):
        (root / "kept" / f"{name}.bin").write_bytes(body)
    for folder in ("", "refused", "refused/own"):
        (root / folder / f"{LONG}.bin").write_bytes(make(LONG))
    (root / "index/index.html").write_bytes(body)
    (root / "packed.bin.gz").write_bytes(body)
    # ^B: a bucket ends, ^F: a flush, ^P: a brigade ends.
    (root / "split/text.txt").write_bytes(
        (b"x" * 2000 + b"\2" + b"y" * 100 + b"\x06" + b"z" * 600 + b"\x10") * 10)
    (root / "empty.bin").write_bytes(b"")
    (root / "error.html").write_text("<p>An error page of its own\n" * 20)
    text = _text(LINES)
    for folder in ("squeezed/gzip", "squeezed/brotli", "chosen", "typed",
                   "substituted", "edited", "upper", "buffered"):
        (root / folder / "text.txt").write_text(text)
    (root / "recoded/text.txt").write_bytes("Übergröße\n".encode("latin-1")
                                            * 2000)
    (root / "views/page.txt.de").write_text("Deutsch\n" * 500)
    (root / "views/page.txt.en").write_text("English\n" * 500)
    (root / "maps/page.var").write_text(
        "URI: de.txt\nContent-Type: text/plain\nContent-Language: de\n\n"
        "URI: en.txt\nContent-Type: text/plain\nContent-Language: en\n")
    (root / "maps/strict.var").write_text(
        "URI: de.txt\nContent-Type: text/plain\n")
    (root / "maps/de.txt").write_text("Deutsch\n" * 500)
    (root / "maps/en.txt").write_text("English\n" * 500)
    (root / "listed/one.txt").write_text("one")
    (root / "asis/page.asis").write_text(
        "Status: 203 As it is\nContent-Type: text/plain\nX-Asis: yes\n\n"
        + "as it is\n" * 1000)
    (root / "asis/coded.asis").write_text(
        "Content-Type: text/plain\nTransfer-Encoding: chunked\n\n"
        "5\r\ncoded\r\n0\r\n\r\n")
    (root / "accessible/.htaccess").write_text("RdmaEnable On\n")
    (root / "included/error.shtml").write_text(
        "first\n" + '<!--#include virtual="part.txt" -->' * 3 + "last\n")
    (root / "included/part.txt").write_text("a part\n")
    (root / "included/page.shtml").write_text(
        '<!--#include virtual="part.txt" --><!--#echo var="HTTP_HOST" -->\n'
        * 300)
    (root / "included/program.shtml").write_text(
        '[<!--#include virtual="/programs/cat.cgi" -->]')
    (root / "lua/puts.lua").write_text(
        "function handle(r)\n  r.content_type = 'text/plain'\n"
        f"  for i = 1, 20 do r:puts(string.rep('x', {PROGRAM // 20})) end\n"
        "  return apache2.OK\nend\n")
    (root / "php/page.php").write_text(
        "<?php header('Content-Type: text/plain');\n"
        f"for ($i = 0; $i < 20; $i++) {{ echo str_repeat('p', "
        f"{PROGRAM // 20}); flush(); }}\n")
    data = root / "program.bin"
    data.write_bytes(make(PROGRAM))
    kind = "echo Content-Type: application/octet-stream"
    for name in "cat", "nokeepalive", "downgrade", "novary", "force":
        _program(root, f"{name}.cgi", f"{kind}\necho\ncat {data}")
    for name in ("length", "trusted"):
        _program(root, f"{name}.cgi",
                 f"{kind}\necho Content-Length: {PROGRAM}\necho\ncat {data}")
    _program(root, "short.cgi", f"{kind}\necho\nhead -c {SIZE // 2} {data}")
    _program(root, "text.cgi", f"echo Content-Type: text/plain\necho\n"
             f"cat {root}/upper/text.txt")
    _program(root, "empty.cgi", "echo Status: 204 No Content\necho")
    _program(root, "nothing.cgi", f"{kind}\necho\nsleep 0.5")
    for line in "204 No Content", "304 Not Modified", "299 As It Likes":
        _program(root, f"{line[:3]}.cgi",
                 f"echo Status: {line}\n{kind}\necho\ncat {data}")
    _program(root, "nph-it.cgi",
             f"echo HTTP/1.1 200 As It Likes\n{kind}\necho\ncat {data}")
    _program(root, "variant.cgi",
             f"{kind}\necho\nyes $HTTP_ACCEPT_LANGUAGE | head -c {VARIANT}")
    _program(root, "error.cgi",
             "echo Content-Type: text/plain\necho\n"
             'echo "the program answers $REDIRECT_STATUS"')
    _program(root, "action.cgi",
             "echo Content-Type: text/plain\necho\n"
             'echo "the action for $PATH_INFO"')
    _program(root, "location.cgi", f"echo Location: {FILE}\necho")
    _program(root, "stdin.cgi",
             "echo Content-Type: text/plain\necho\n"
             "cat 2>/dev/null\necho the end")
    (var / "basic").write_text("user:{SHA}" + base64.b64encode(
        hashlib.sha1(b"secret").digest()).decode() + "\n")
    (var / "digest").write_text("user:matrix:" + hashlib.md5(
        b"user:matrix:secret").hexdigest() + "\n")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
         "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30", "-subj",
         "/CN=server", "-addext", "subjectAltName=DNS:server", "-addext",
         "basicConstraints=critical,CA:FALSE", "-keyout",
         str(var / "tls.key"), "-out", str(var / "tls.crt")],
        check=True, capture_output=True, timeout=120)
    (var / "tls.pem").write_text((var / "tls.key").read_text()
                                 + (var / "tls.crt").read_text())
    for path in root.rglob("*"):
        os.utime(path, (WHEN, WHEN))


def forget(site):
    """What servers before this one have left in their caches on disk."""
    for name, _, _ in CACHES:
        for path in (site / "matrix-var" / name).iterdir():
            shutil.rmtree(path)
