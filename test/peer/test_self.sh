#!/bin/sh
# Runs inside the lab: do both halves of rdma_peer agree, over each driver?
#
#   test_self.sh [DRIVER...]        (stock tuned rxe)
set -u

here=$(cd "$(dirname "$0")" && pwd)
peer=/build/peer/rdma_peer
passed=0
runs=0

# run STATUS PATHS OPTION...: PATHS are words.
run() {
    wanted=$1
    options=
    for path in $2; do
        options="$options --path $path"
    done
    shift 2
    runs=$((runs + 1))
    # shellcheck disable=SC2086 # none or several words
    timeout 60 $CLIENT_EXEC "$peer" --server "$server" --bind "$client" \
        --verify stamp:7 --json --timeout 15 --progress 5 $options "$@" \
        >/tmp/peer.out 2>&1 </dev/null
    status=$?
    if [ $status -eq "$wanted" ]; then
        passed=$((passed + 1))
    else
        echo "FAILED $LAB_DRIVER: $status, not $wanted: $options $*"
        sed 's/^/  /' /tmp/peer.out
    fi
}

cases() {
    # One pass, and none.
    run 0 /7/1048576 --mode write --expect-path write --bytes 1048576
    run 0 /7/1048577 --mode read --expect-path read --bytes 1048577
    run 0 /7/0 --expect-path tcp
    run 0 '/7/300000?decline=busy' --expect-declined busy
    run 0 '/7/300000?late=1500' --mode write --expect-path write
    run 0 '/7/300000?fail' --mode write --expect-declined failed
    run 1 '/7/300000?bare' --mode write
    # Rings, down to a byte.
    run 0 '/7/150000?unknown' --mode write --window 65536 --bytes 150000 \
        --expect-path write
    run 0 /7/150000 --mode write --window 65536 --expect-path write
    run 0 '/7/1500?dry' --mode write --window 7 --bytes 1500
    run 0 /7/300 --mode write --window 1 --bytes 300
    run 0 '/7/10000001?unknown' --mode write --window 100001 --bytes 10000001
    # Chains of parts.
    run 0 '/7/600000?stream' --mode read --bytes 600000 --expect-path read
    run 0 '/7/600000?unknown&dry' --mode read --bytes 600000
    run 0 '/7/100?unknown&part=7' --mode read --bytes 100
    run 0 '/7/100?unknown&part=7&dry' --mode read --bytes 100
    run 0 '/7/50?unknown' --mode read --bytes 50
    run 0 '/7/20000001?unknown&part=1000003' --mode read --reads 1
    # Failures of either end.
    run 1 '/7/300000?abort' --mode write
    run 1 '/7/900000?abort' --mode read
    run 1 '/7/300000?revoke=500' --mode read --step before-read=wait:1500
    run 0 /7/300000 --mode write --step first-message=disconnect
    run 1 '/7/300000?stream' --mode read --step during-read=disconnect
    run 1 '/7/300000?stream' --mode read --step during-read=abort
    run 0 /7/300000 --mode write --requests 64 --share --expect-ok 63 \
        --step first-message@5=abort
    # A server that breaks the protocol, or off.
    run 0 '/7/300000?lie=bad-type' --expect-declined failed
    run 0 '/7/300000?lie=written-beyond' --mode write --expect-declined failed
    run 0 '/7/300000?lie=offer-third' --mode read --expect-declined failed
    run 0 '/7/300000?lie=connect-token' --expect-declined connect
    # Many at once; few credits.
    run 0 /7/300000 --clients 64 --requests 4 --concurrency 4 --window 300000
    run 0 '/7/300000?read /7/500000?unknown&read /7/77777?write&stream' \
        --clients 16 --requests 10 --concurrency 5 --window 100k --depth 8
    run 0 '/7/5000?unknown&read&part=10 /7/5000?write' \
        --clients 3 --requests 10 --share --window 100 --depth 8
}

"$peer" --examples "$here/../../docs/PROTOCOL.md" || exit 1
[ $# -gt 0 ] || set -- stock tuned rxe
for driver; do
    "$here/../lab/hosts.sh" up "$driver" || exit 1
    # shellcheck source=/dev/null
    . /run/lab.env
    "$peer" --serve --bind "$SERVER4" --port 9090 >/dev/null &
    first=$!
    "$peer" --serve --bind "$SERVER6" --port 9090 >/dev/null &
    second=$!
    sleep 1
    server=$SERVER4:9090
    client=$CLIENT4
    cases
    server="[$SERVER6]:9090"
    client=$CLIENT6
    run 0 '/7/300000?read /7/500000?unknown&read /7/77777?write&stream' \
        --clients 8 --requests 10 --concurrency 5 --window 100k
    kill $first $second
    wait $first $second
done
"$here/../lab/hosts.sh" down

echo "peer: $passed of $runs runs as they should be"
[ $passed -eq $runs ]
