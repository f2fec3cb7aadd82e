#!/bin/sh
# The end-to-end tests: real httpd, real clients, real RDMA drivers.
#
#   run.sh check|long|EXPRESSION
#
# check    what has to pass before a change goes in
# long     all of it: the full product of drivers, modes, families and MPMs
# else     the tests that pytest's -k EXPRESSION selects (K=EXPRESSION too)
#
# With SAN=1, what is tested was built with AddressSanitizer (SAN=1 for make, too),
# and what that finds in httpd counts as a complaint in its log.
#
# Boots the lab and runs everything in that one guest; started inside the lab it
# does the second half only. What failed tests have logged is kept in
# BUILD/e2e/. Fails when a test failed, when there is no lab, and when not a
# single byte went by RDMA.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
what=${1:-check}
what=${what#K=}

if [ "${LAB:-}" != guest ]; then
    case $what in
    long) timeout=5400 ;;
    *) timeout=$((1800 + ${N:-0} / 8)) ;;
    esac
    build=${BUILD:-$here/../../build}
    mkdir -p "$build"
    layer=$("$here/../lab/lab.sh" layer)
    exec "$here/../lab/lab.sh" run --layer "$layer" --build "$build" --timeout $timeout \
        --env "SAN=${SAN:-}" --env "SEED=${SEED:-}" --env "N=${N:-}" -- sh test/e2e/run.sh "$what"
fi

for file in module/mod_rdma.so client/rwget peer/rdma_peer; do
    if [ ! -e "/build/$file" ]; then
        echo "e2e: there is no $file; run make -f Makefile.apxs programs" >&2
        exit 1
    fi
done

# In memory they start faster.
for dir in module client peer; do
    mkdir -p "/run/e2e/$dir"
    find "/build/$dir" -maxdepth 1 -type f -perm -u=r -exec cp -p {} "/run/e2e/$dir" \;
    mount --bind "/run/e2e/$dir" "/build/$dir"
done

case $what in
check) set -- --suite=check -m 'not long' ;;
long) set -- --suite=long ;;
*) set -- --suite=some -k "$what" ;;
esac
exec /usr/bin/python3 -u -m pytest -p no:cacheprovider -v --tb=short --durations=25 \
    --confcutdir="$here" --rootdir="$here" -c "$here/pytest.ini" "$@" "$here"
