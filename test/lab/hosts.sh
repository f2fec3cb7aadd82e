#!/bin/sh
# Makes two hosts out of one guest, or one out of each guest of a pair (lab.sh
# pair); runs inside it, as root.
#
#   hosts.sh up stock|tuned|rxe|none [MTU]     (default MTU 9000)
#   hosts.sh join stock|tuned|rxe|none [MTU]   in both guests of a pair
#   hosts.sh down
#
# stock, tuned   Soft-iWARP, as Debian ships its source or with
#                siw-tuned.patch; the client is network namespace `client`
# rxe            soft RoCE; both ends in one namespace, because on this kernel
#                it does not cross them. The client has to bind its sockets
#                to its own address, or it would come from the server's.
# none           the network of stock, and no RDMA device
#
# `up` and `join` first do `down`. They leave what scripts need to know in
# /run/lab.env. In a pair LAB_ROLE says which host a guest is, addresses stay
# from one `join` to the next, and `down` takes only the RDMA device away.
set -eu

env=/run/lab.env
clients4='10.77.0.2 10.77.0.3 10.77.0.4'
clients6='fd77::2 fd77::3 fd77::4'

down() {
    rm -f $env
    for device in siw_s siw_c rxe_s rxe_c; do
        if [ -e "/sys/class/infiniband/$device" ]; then
            # Waits until every process has closed the device.
            rdma link del "$device"
        fi
    done
    # Before the namespace, whose end would take this one along, but not at
    # once.
    if [ -e /sys/class/net/lab_s ]; then
        ip link del lab_s
    fi
    if [ -e /run/netns/client ]; then
        ip netns del client
    fi
    undo_rules
    if [ -e /sys/module/siw ]; then
        rmmod siw
    fi
}

# over_the_wire: what the two ends send to each other, in one namespace, is
# local to the kernel and would go by lo, where no RDMA device is. So the pairs
# of addresses get routes of their own, ahead of the table of local addresses.
over_the_wire() {
    # Else each end drops what comes in, for its source is local.
    for end in lab_s lab_c; do
        echo 1 >"/proc/sys/net/ipv4/conf/$end/accept_local"
        echo 0 >"/proc/sys/net/ipv4/conf/$end/rp_filter"
    done
    ip -batch - <<END
route add 10.77.0.0/24 dev lab_c table 771
route add 10.77.0.0/24 dev lab_s table 772
route add fd77::/64 dev lab_c table 771
route add fd77::/64 dev lab_s table 772
END
    rules 10.77.0.1 "$clients4" | ip -4 -batch -
    rules fd77::1 "$clients6" | ip -6 -batch -
}

# rules SERVER CLIENTS: prints commands for ip -batch. `iif lo` is what is sent
# here; `oif` is for the RDMA connection manager, which checks by a look-up of
# its own that a request came in by the interface that leads back.
rules() {
    for address in $2; do
        echo "rule add pref 10 iif lo from $address to $1 table 771"
        echo "rule add pref 10 iif lo from $1 to $address table 772"
        echo "rule add pref 10 oif lab_c from $address to $1 table 771"
        echo "rule add pref 10 oif lab_s from $1 to $address table 772"
    done
    echo "rule add pref 20 table local"
    echo "rule del pref 0"
}

# undo_rules: takes the rules of over_the_wire back.
undo_rules() {
    for family in -4 -6; do
        if ip $family rule show pref 20 | grep -q local; then
            ip $family rule add pref 0 table local
            ip $family rule del pref 20
            while ip $family rule del pref 10 2>/dev/null; do
                :
            done
        fi
    done
}

# active DEVICE: waits up to 10 seconds until its port can be used.
active() {
    tries=0
    until grep -q ACTIVE /sys/class/infiniband/"$1"/ports/1/state; do
        tries=$((tries + 1))
        if [ $tries -gt 100 ]; then
            echo "hosts.sh: $1 does not become active" >&2
            exit 1
        fi
        sleep 0.1
    done
}

# load: inserts the module of $driver, and sets kind to that of its links.
load() {
    case $driver in
    stock | tuned)
        insmod /run/lab/siw-"$driver".ko
        kind=siw
        ;;
    rxe) kind=rxe ;;
    none) kind= ;;
    esac
}

up() {
    driver=$1
    mtu=$2
    client='ip netns exec client'
    inside='-n client'
    load
    if [ "$driver" = rxe ]; then
        client=
        inside=
    fi

    ip link add lab_s mtu "$mtu" type veth peer name lab_c mtu "$mtu"
    if [ -n "$inside" ]; then
        ip netns add client
        ip link set lab_c netns client
        ip -n client link set lo up
    fi
    # Before the links are up: no duplicate address detection, usable at once.
    ip -batch - <<END
address add 10.77.0.1/24 dev lab_s
address add fd77::1/64 dev lab_s nodad
link set lab_s up
END
    # shellcheck disable=SC2086 # none or two words
    ip $inside -batch - <<END
address add 10.77.0.2/24 dev lab_c
address add 10.77.0.3/24 dev lab_c
address add 10.77.0.4/24 dev lab_c
address add fd77::2/64 dev lab_c nodad
address add fd77::3/64 dev lab_c nodad preferred_lft 0
address add fd77::4/64 dev lab_c nodad preferred_lft 0
link set lab_c up
END

    if [ -z "$inside" ]; then
        over_the_wire
    fi
    if [ -n "$kind" ]; then
        rdma link add "${kind}_s" type "$kind" netdev lab_s
        $client rdma link add "${kind}_c" type "$kind" netdev lab_c
        active "${kind}_s"
        active "${kind}_c"
    fi

    leave_env lab_s lab_c
}

# leave_env SERVER_IF CLIENT_IF
leave_env() {
    cat >$env.new <<END
LAB_DRIVER=$driver
LAB_MTU=$mtu
SERVER4=10.77.0.1
SERVER6=fd77::1
CLIENT4=10.77.0.2
CLIENT6=fd77::2
CLIENTS4='$clients4'
CLIENTS6='$clients6'
CLIENT_EXEC='$client'
SERVER_IF=$1
CLIENT_IF=$2
SERVER_DEV=${kind:+${kind}_s}
CLIENT_DEV=${kind:+${kind}_c}
END
    mv $env.new $env
}

# card: prints the name of the network card, of which a guest of a pair has one.
card() {
    for net in /sys/class/net/*; do
        if [ -e "$net/device" ]; then
            basename "$net"
        fi
    done
}

join() {
    driver=$1
    mtu=$2
    client=
    card=$(card)
    load
    case ${LAB_ROLE:-}:$card in
    :*)
        echo "hosts.sh: LAB_ROLE is not set: this guest is not of a pair" >&2
        exit 1
        ;;
    *:)
        echo "hosts.sh: there is no network card" >&2
        exit 1
        ;;
    server:*) end=s host=1 ;;
    client:*) end=c host=2 ;;
    esac
    ip -batch - <<END
link set $card mtu $mtu
address replace 10.77.0.$host/24 dev $card
address replace fd77::$host/64 dev $card nodad
link set $card up
END
    if [ -n "$kind" ]; then
        rdma link add "${kind}_$end" type "$kind" netdev "$card"
        active "${kind}_$end"
    fi
    leave_env "$card" "$card"
}

usage() {
    echo "usage: hosts.sh up|join stock|tuned|rxe|none [MTU] |" \
        "hosts.sh down" >&2
    exit 2
}

if [ ! -d /run/lab ]; then
    echo "hosts.sh: this is not the lab; see lab.sh" >&2
    exit 1
fi
case ${1:-} in
up | join)
    case ${2:-} in
    stock | tuned | rxe | none) ;;
    *) usage ;;
    esac
    down
    "$1" "$2" "${3:-9000}"
    ;;
down)
    down
    ;;
*)
    usage
    ;;
esac
