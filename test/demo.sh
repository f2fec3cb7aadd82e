#!/bin/sh
# See it work: fetches files by TCP, by server-write and by client-read, and
# compares their SHA-256.
#
#   RDMA_DEV=NAME   use this RDMA device of the machine
#   LAB=yes         use the lab even if the machine has a device
#
# Runs where the RDMA device is: on this machine if it has an active port with
# an address, else in the lab. demo.py, which does the work, is the same there.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
build=${BUILD:-$here/../build}

# address DEVICE: the IP address that goes with its first port, if that port is
# active and has one.
address() {
    grep -q ACTIVE "/sys/class/infiniband/$1/ports/1/state" 2>/dev/null ||
        return 1
    netdev=$(rdma link show "$1/1" 2>/dev/null |
        sed -n 's/.* netdev \([^ ]*\).*/\1/p')
    [ -n "$netdev" ] || return 1
    ip -o address show dev "$netdev" scope global |
        sed -n 's/.* inet6* \([^ /]*\).*/\1/p' | head -n 1
}

in_guest() {
    "$here/lab/hosts.sh" up tuned
    # shellcheck source=/dev/null
    . /run/lab.env
    exec /usr/bin/python3 "$here/e2e/demo.py" --build /build \
        --server "$SERVER4" --client "$CLIENT4" --exec "$CLIENT_EXEC" \
        --what "the lab, Soft-iWARP ($LAB_DRIVER), MTU $LAB_MTU"
}

if [ "${DEMO:-}" = guest ]; then
    in_guest
fi

if [ "${LAB:-}" != yes ]; then
    for device in ${RDMA_DEV:-$(ls /sys/class/infiniband 2>/dev/null)}; do
        found=$(address "$device") || found=
        if [ -n "$found" ]; then
            exec /usr/bin/python3 "$here/e2e/demo.py" --build "$build" \
                --server "$found" --client "$found" \
                --what "device $device at $found"
        fi
    done
    if [ -n "${RDMA_DEV:-}" ]; then
        echo "demo: $RDMA_DEV has no active port with an address" >&2
        exit 1
    fi
fi

exec "$here/lab/lab.sh" run --build "$build" --env DEMO=guest -- \
    sh test/demo.sh
