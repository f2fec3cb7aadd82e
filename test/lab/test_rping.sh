#!/bin/sh
# Runs inside the lab: do both ends of every driver talk to each other? Ten
# verified pings over each driver, by IPv4 and by IPv6.
set -u

here=$(cd "$(dirname "$0")" && pwd)
passed=0
runs=0

# ping FAMILY SERVER CLIENT
ping() {
    runs=$((runs + 1))
    timeout 30 rping -s -a "$2" -C 10 -V >/tmp/rping.server 2>&1 &
    server=$!
    # Nothing tells when it listens. A client that is early is refused.
    tries=0
    while :; do
        # shellcheck disable=SC2086 # none or several words
        timeout 20 $CLIENT_EXEC rping -c -a "$2" -I "$3" -C 10 -V -v \
            >/tmp/rping.client 2>&1
        client=$?
        tries=$((tries + 1))
        if [ "$client" -eq 0 ] || [ $tries -ge 5 ]; then
            break
        fi
        sleep 0.5
    done
    pings=$(grep -c 'ping data:' /tmp/rping.client)
    if [ "$client" -ne 0 ]; then
        kill $server 2>/dev/null
    fi
    wait $server
    status=$?
    if [ "$client" -eq 0 ] && [ "$pings" -eq 10 ] && [ "$status" -eq 0 ]; then
        passed=$((passed + 1))
        echo "ok $LAB_DRIVER $1"
    else
        echo "FAILED $LAB_DRIVER $1: client $client, server $status," \
            "$pings of 10 pings"
        sed 's/^/  server: /' /tmp/rping.server
        sed 's/^/  client: /' /tmp/rping.client
    fi
}

for driver in stock tuned rxe; do
    "$here/hosts.sh" up $driver || {
        echo "FAILED $driver: no hosts"
        runs=$((runs + 2))
        continue
    }
    # shellcheck source=/dev/null
    . /run/lab.env
    ping IPv4 "$SERVER4" "$CLIENT4"
    ping IPv6 "$SERVER6" "$CLIENT6"
done
"$here/hosts.sh" down || passed=-1

echo "lab: $passed of $runs rping runs passed"
[ $passed -eq $runs ]
