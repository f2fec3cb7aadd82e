#!/bin/sh
# Apache's own regression suite against a server that has mod_rdma loaded and
# enabled everywhere, with a device: nothing may fail that does not fail without.
#
#   regress.sh SUITE [TEST...]
#
# SUITE  a checkout of httpd's "perl-framework" (github.com/apache/httpd-tests)
# TEST   files or folders of it (t/modules/deflate.t); without any: all
# FIELD=1 in the environment puts a request field into every request, from a
#        client whom nobody can connect to
#
# What it needs of Perl is unpacked, not installed. It runs in the lab: first
# with the module; then what has failed, without. Logs are in BUILD/regress.
# Emulated, all of it takes about an hour.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
lab=$here/lab/lab.sh
packages='libapache2-mod-perl2 libwww-perl libhttp-dav-perl libdatetime-perl
          libnet-ssleay-perl libio-socket-ssl-perl liblwp-protocol-https-perl
          libfcgi-perl libanyevent-perl libcrypt-ssleay-perl php-fpm openssl'
modules='mpm_event authn_core authn_file authz_core authz_host authz_user
         authz_groupfile auth_basic auth_digest auth_form actions alias
         allowmethods asis autoindex brotli buffer cache cache_disk
         cache_socache cgid charset_lite data dav dav_fs dav_lock deflate dir
         echo env expires ext_filter filter headers http2 include info
         lbmethod_byrequests lua mime mime_magic negotiation proxy
         proxy_balancer proxy_connect proxy_express proxy_fcgi proxy_hcheck
         proxy_http proxy_scgi proxy_uwsgi proxy_wstunnel ratelimit reflector
         remoteip reqtimeout request rewrite sed session session_cookie
         session_crypto setenvif slotmem_shm socache_dbm socache_shmcb speling
         ssl status substitute unique_id userdir usertrack vhost_alias watchdog
         macro xml2enc proxy_html proxy_ajp proxy_fdpass proxy_ftp log_debug
         log_forensic authnz_fcgi lbmethod_bybusyness lbmethod_bytraffic'
libexec=/usr/lib/apache2/modules

# configure DIR CONF: DIR is a copy of the suite. Makes its test modules, too.
configure() {
    (
        cd "$1"
        perl Makefile.PL -apxs /usr/bin/apxs -httpd /usr/sbin/apache2 \
            -httpd_conf "$2" && t/TEST -config -port 8529
    ) </dev/null
}

base_conf() {
    for name in $modules; do
        [ ! -e $libexec/mod_"$name".so ] ||
            echo "LoadModule ${name}_module $libexec/mod_$name.so"
    done
}

if [ "${LAB:-}" != guest ]; then
    suite=${1:?usage: regress.sh SUITE [TEST...]}
    shift
    [ -e "$suite/c-modules" ] || {
        echo "regress: $suite is not the suite" >&2
        exit 2
    }
    build=${BUILD:-$here/../build}
    # shellcheck disable=SC2086 # a list of words
    layer=$("$lab" layer $packages)
    rm -rf "$build/regress"
    mkdir -p "$build/regress"
    cp -R "$suite" "$build/regress/suite"
    base_conf >"$build/regress/base.conf"
    # The test modules: here it takes seconds, in the lab minutes.
    perl5=$(echo "$layer"/usr/share/perl5 "$layer"/usr/lib/*/perl5/5.* |
        tr ' ' ':')
    PERL5LIB=$perl5 PATH=$PATH:$layer/usr/bin configure \
        "$build/regress/suite" "$(realpath "$build/regress/base.conf")" \
        >"$build/regress/configure.log" 2>&1 || {
        tail "$build/regress/configure.log"
        exit 1
    }
    exec "$lab" run --layer "$layer" --build "$build" --timeout 14400 \
        --env "FIELD=${FIELD:-}" -- sh test/regress.sh "$@"
fi

sh test/lab/hosts.sh up tuned
mkdir /tmp/regress
cp -R /build/regress/suite /tmp/regress/without
cp /build/regress/base.conf /tmp/regress/without.conf

# run NAME [TEST...]: a line for each assertion goes to NAME.log.
run() {
    name=$1
    shift
    chown -R www-data: /tmp/regress
    # Apache::Test will not run as root. It ends with 1 when anything failed.
    setpriv --reuid=www-data --regid=www-data --clear-groups \
        env HOME=/tmp/regress sh -c '
            cd "$1" && shift && conf=$1 && shift &&
            perl Makefile.PL -apxs /usr/bin/apxs -httpd /usr/sbin/apache2 \
                -httpd_conf "$conf" && t/TEST -verbose -port 8529 "$@"' \
        sh "/tmp/regress/$name" "/tmp/regress/$name.conf" "$@" \
        >"/build/regress/$name.log" 2>&1 </dev/null || true
    cp "/tmp/regress/$name/t/logs/error_log" \
        "/build/regress/$name.error_log" || true
}

# results NAME: for each file and assertion "FILE N ok|FAILED"
results() {
    awk '
        # The harness names a file before what the file says; after that, on
        # the same line, its plan may stand.
        match($0, /^t\/[^ ]*\.t/) { file = substr($0, 1, RLENGTH) }
        /^not ok [0-9]/ && !/# *(TODO|SKIP)/i { print file, $3, "FAILED" }
        /^ok [0-9]/ { print file, $2, "ok" }
        /Dubious|No plan found|Bad plan|exited [1-9]/ { print file, 0, "FAILED" }
    ' "/build/regress/$1.log"
}

cp -R /tmp/regress/without /tmp/regress/with
{
    cat /tmp/regress/without.conf
    echo "LoadModule rdma_module /build/module/mod_rdma.so"
    echo "RdmaEnable On"
    echo "RdmaMinSize 1"
    if [ -n "${FIELD:-}" ]; then
        echo 'RequestHeader set RDMA "v=1, port=9, token=:AAECAwQFBgcICQoLDA0ODw==:, id=1, read" early'
        echo 'RequestHeader merge Connection RDMA early'
    fi
} >/tmp/regress/with.conf
run with "$@"
results with >/tmp/regress/with.results
total=$(wc -l </tmp/regress/with.results)
failed=$(awk '$3 == "FAILED" { print $1 }' /tmp/regress/with.results | sort -u)
echo "with mod_rdma: $(grep -c ' ok$' /tmp/regress/with.results) ok," \
    "$(grep -c 'FAILED$' /tmp/regress/with.results) failed"
[ "$total" -gt 0 ] || {
    tail -20 /build/regress/with.log
    exit 1
}
grep -q RDMA0001 /build/regress/with.error_log || {
    echo "regress: the module was not there" >&2
    exit 1
}
[ -n "$failed" ] || exit 0

# shellcheck disable=SC2086 # a list of words
run without $failed
results without >/tmp/regress/without.results
echo "of these without it:" \
    "$(grep -c 'FAILED$' /tmp/regress/without.results) failed"
sort /tmp/regress/without.results >/tmp/regress/without.sorted
grep 'FAILED$' /tmp/regress/with.results | sort |
    comm -23 - /tmp/regress/without.sorted >/tmp/regress/new
if [ -s /tmp/regress/new ]; then
    echo "only with mod_rdma:"
    cat /tmp/regress/new
    exit 1
fi
