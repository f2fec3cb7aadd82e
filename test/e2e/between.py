"""Other people's HTTP servers, put between a client and ours."""
import signal
import subprocess
from pathlib import Path
import socket

from hosts import wait_until
from httpd import APACHE, MODULES

PORT = 8090

# {at} and {port}: where it listens; {to} and {to_port}: whom it asks; {root}: a
# folder of its own.
NGINX = """
daemon off;
master_process off;
error_log {root}/error.log;
pid {root}/pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path {root}/body;
    proxy_temp_path {root}/temp;
    fastcgi_temp_path {root}/temp;
    uwsgi_temp_path {root}/temp;
    scgi_temp_path {root}/temp;
    proxy_cache_path {root}/cache keys_zone=all:1m;
    server {{
        listen {at}:{port};
        location / {{
            proxy_pass http://{to}:{to_port};
            proxy_http_version 1.1;
            {more}
        }}
    }}
}}
"""
HAPROXY = """
global
    maxconn 100
defaults
    mode http
    timeout connect 10s
    timeout client 30s
    timeout server 30s
{more}
frontend in
    bind {at}:{port}
    default_backend out
backend out
    {use}
    server one {to}:{to_port}
"""
VARNISH = """
vcl 4.1;
backend default {{ .host = "{to}"; .port = "{to_port}"; }}
{more}
"""
SQUID = """
http_port {at}:{port} {mode}
{more}
pid_filename {root}/pid
cache_log {root}/cache.log
access_log none
cache_effective_user proxy
cache_mem 64 MB
maximum_object_size_in_memory 8 MB
coredump_dir {root}
http_access allow all
shutdown_lifetime 1 seconds
pinger_enable off
netdb_filename none
"""
HTTPD = """
ServerRoot "{root}"
ServerName between
PidFile "{root}/pid"
DefaultRuntimeDir "{root}"
Listen {at}:{port}
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule headers_module {modules}/mod_headers.so
LoadModule proxy_module {modules}/mod_proxy.so
LoadModule proxy_http_module {modules}/mod_proxy_http.so
LoadModule cache_module {modules}/mod_cache.so
LoadModule cache_disk_module {modules}/mod_cache_disk.so
User www-data
Group www-data
ErrorLog "{root}/error.log"
ProxyPass / http://{to}:{to_port}/
CacheRoot "{root}"
{more}
"""

BOTH = "proxy_set_header Connection $http_connection; " \
       "proxy_set_header RDMA $http_rdma;"
KINDS = {
    # name: what it is configured with. forwards: the field and its nomination go
    # through, which a proxy that keeps to RFC 9110 does not let them.
    "nginx": dict(conf=NGINX, more=""),
    "nginx, forwards": dict(conf=NGINX, more=BOTH, forwards=True),
    "nginx, caches": dict(
        conf=NGINX, more="proxy_cache all; proxy_cache_valid 10m; " + BOTH,
        forwards=True),
    "haproxy": dict(conf=HAPROXY, more="", use="", forwards=True),
    "haproxy, caches": dict(
        conf=HAPROXY,
        more="cache all\n    total-max-size 64\n    max-object-size 8388608",
        use="http-request cache-use all\n    http-response cache-store all",
        forwards=True),
    "varnish": dict(conf=VARNISH, more=""),
    "varnish, forwards": dict(conf=VARNISH, forwards=True, more="""
sub vcl_recv {{
    set req.http.X-Kept = req.http.RDMA;
}}
sub vcl_backend_fetch {{
    if (bereq.http.X-Kept) {{
        set bereq.http.RDMA = bereq.http.X-Kept;
        set bereq.http.Connection = "RDMA";
    }}
}}"""),
    "squid": dict(conf=SQUID, mode="accel no-vhost defaultsite=server",
                  more="cache_peer {to} parent {to_port} 0 no-query "
                       "originserver"),
    "squid, a proxy by name": dict(conf=SQUID, mode="", more=""),
    "httpd": dict(conf=HTTPD, more=""),
    "httpd, keeps the field": dict(conf=HTTPD, more="""
RequestHeader set X-Kept "expr=%{{req:RDMA}}" early
RequestHeader set RDMA "expr=%{{req:X-Kept}}"
"""),
    "httpd, caches": dict(conf=HTTPD, more="CacheEnable disk /"),
}


class Between:
    """One of KINDS, in the server's or the client's host."""

    def __init__(self, kind, folder, at, to, to_port):
        self.kind = kind
        self.root = Path(folder)
        self.root.chmod(0o777)
        self.at = at
        self.process = None
        settings = dict(KINDS[kind])
        self.forwards = settings.get("forwards", False)
        words = dict(at=at, port=PORT, to=to, to_port=to_port, root=self.root,
                     modules=MODULES)
        for name in ("more", "use", "mode"):
            words[name] = settings.get(name, "").format(**words)
        self.file = self.root / "conf"
        self.file.write_text(settings["conf"].format(**words))

    def command(self):
        program = self.kind.partition(",")[0]
        return {
            "nginx": ["nginx", "-c", self.file, "-p", self.root],
            "haproxy": ["haproxy", "-db", "-f", self.file],
            "varnish": ["varnishd", "-F", "-j", "none", "-n", self.root / "n",
                        "-f", self.file, "-s", "malloc,64m", "-T", "none",
                        "-p", "vsl_space=1M",
                        "-a", f"{self.at}:{PORT}"],
            "squid": ["squid", "-N", "-f", self.file],
            "httpd": [APACHE, "-DFOREGROUND", "-f", self.file],
        }[program]

    def start(self):
        with open(self.root / "output", "wb") as output:
            self.process = subprocess.Popen(
                [str(word) for word in self.command()],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True)

    def answers(self):
        if self.process.poll() is not None:
            raise AssertionError(f"{self.kind} has ended:\n" + self.logs())
        try:
            socket.create_connection((self.at, PORT), 5).close()
        except ConnectionRefusedError:
            return False
        return True

    def wait(self):
        wait_until(self.answers, 60, f"{self.kind} answers")

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def logs(self):
        text = []
        for path in sorted(self.root.glob("*")):
            if path.is_file():
                text.append(f"==== {path.name}\n"
                            + path.read_text(errors="replace"))
        return "\n".join(text)
