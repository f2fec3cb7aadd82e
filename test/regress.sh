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
         log_forensic authnz_fcgi bucketeer case_filter case_filter_in
         authn_anon access_compat lbmethod_bybusyness lbmethod_bytraffic'
libexec=/usr/lib/apache2/modules
field='v=1, port=1024, token=:AAECAwQFBgcICQoLDA0ODw==:, id=1, read'

# configure NAME: makes BUILD/regress/NAME, a copy of the suite that is ready to
# run in this place, with its test modules. Of the configuration that it is given it
# takes the modules only; the rest goes to where it keeps its own.
configure() {
    cp -R "$suite" "$build/regress/$1"
    (
        cd "$build/regress/$1"
        cat "$build/regress/$1.more" >>t/conf/extra.conf.in
        perl Makefile.PL -apxs /usr/bin/apxs -httpd /usr/sbin/apache2 \
            -httpd_conf "$build/regress/$1.conf" \
            -user www-data -group www-data -port 8529 && t/TEST -config
    ) >"$build/regress/$1.configure" 2>&1 </dev/null || {
        tail "$build/regress/$1.configure"
        exit 1
    }
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
    build=$(realpath "${BUILD:-$here/../build}")
    # shellcheck disable=SC2086 # a list of words
    layer=$("$lab" layer $packages)
    PERL5LIB=$(echo "$layer"/usr/share/perl5 "$layer"/usr/lib/*/perl5/5.* |
        tr ' ' ':')
    export PERL5LIB
    rm -rf "$build/regress"
    mkdir -p "$build/regress"
    cp "$build/module/mod_rdma.so" "$build/regress"
    base_conf >"$build/regress/without.conf"
    : >"$build/regress/without.more"
    {
        base_conf
        echo "LoadModule rdma_module $build/regress/mod_rdma.so"
    } >"$build/regress/with.conf"
    {
        echo "RdmaEnable On"
        echo "RdmaMinSize 1"
        if [ -n "${FIELD:-}" ]; then
            echo "RequestHeader set RDMA \"$field\" early"
            echo 'RequestHeader merge Connection RDMA early'
        fi
    } >"$build/regress/with.more"
    # Here it takes seconds, in the lab minutes.
    configure with
    configure without
    # One file: the lab takes minutes over many small ones.
    tar -C "$build/regress" -cf "$build/regress/all.tar" with without \
        mod_rdma.so
    exec "$lab" run --layer "$layer" --build "$build" --timeout 14400 \
        --env "REGRESS=$build/regress" -- sh test/regress.sh "$@"
fi

# In the lab it has to be where it was configured.
sh test/lab/hosts.sh up tuned
mkdir -p "$REGRESS"
mount -t tmpfs -o mode=755 regress "$REGRESS"
tar -C "$REGRESS" -xf - </build/regress/all.tar
chown -R www-data: "$REGRESS"

# run NAME [TEST...]: a line for each assertion goes to NAME.log.
run() {
    name=$1
    shift
    # Apache::Test will not run as root. It ends with 1 when anything failed.
    (cd "$REGRESS/$name" && setpriv --reuid=www-data --regid=www-data \
        --clear-groups env HOME="$REGRESS" t/TEST -verbose "$@") \
        >"/build/regress/$name.log" 2>&1 </dev/null || true
    cp "$REGRESS/$name/t/logs/error_log" "/build/regress/$name.error_log" ||
        true
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

run with "$@"
results with >/tmp/with.results
total=$(wc -l </tmp/with.results)
failed=$(awk '$3 == "FAILED" { print $1 }' /tmp/with.results | sort -u)
echo "with mod_rdma: $(grep -c ' ok$' /tmp/with.results) ok," \
    "$(grep -c 'FAILED$' /tmp/with.results) failed"
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
results without >/tmp/without.results
echo "of these without it:" \
    "$(grep -c 'FAILED$' /tmp/without.results) failed"
sort /tmp/without.results >/tmp/without.sorted
grep 'FAILED$' /tmp/with.results | sort |
    comm -23 - /tmp/without.sorted >/tmp/new
if [ -s /tmp/new ]; then
    echo "only with mod_rdma:"
    cat /tmp/new
    exit 1
fi
