#!/bin/sh
# Installs the Debian packages that this project needs; the one place that
# lists them.
#
#   packages.sh [build] [lab] [test] [analyze] [fuzz] [valgrind]
#                                               (default: the first three)
#
# Says first what is missing. As root it installs that; as anybody else it
# prints the command to run and exits 1. With everything present it says
# nothing and exits 0.
#
# No package named here may start a service on the host: hence apache2-bin
# and never apache2, libibverbs and never rdma-core's own units.
set -eu

build='gcc libc6-dev make pkg-config apache2-dev apache2-bin
       libibverbs-dev librdmacm-dev libcurl4-openssl-dev check'

# linux-headers-amd64 decides which kernel the lab boots. What it boots is
# downloaded and unpacked by lab.sh, never installed.
lab='qemu-system-x86 busybox-static cpio kmod iproute2 gcc make patch bzip2
     xz-utils linux-headers-amd64 ibverbs-providers ibverbs-utils
     rdmacm-utils perftest'

test='python3 python3-pytest curl openssl'

analyze='clang'

fuzz='clang libclang-rt-14-dev'

valgrind='valgrind'

case $# in
0)
    set -- build lab test
    ;;
esac

wanted=
for group; do
    case $group in
    build) wanted="$wanted $build" ;;
    lab) wanted="$wanted $lab" ;;
    test) wanted="$wanted $test" ;;
    analyze) wanted="$wanted $analyze" ;;
    fuzz) wanted="$wanted $fuzz" ;;
    valgrind) wanted="$wanted $valgrind" ;;
    *)
        echo "usage: packages.sh [build] [lab] [test] [analyze] [fuzz] [valgrind]" >&2
        exit 2
        ;;
    esac
done

# Without dpkg nothing is known to be present: everything counts as missing.
present=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' 2>/dev/null |
    sed -n 's/^installed //p' | tr '\n' ' ')

missing=
for package in $wanted; do
    case " $present $missing " in
    *" $package "*) ;;
    *) missing="$missing $package" ;;
    esac
done
missing=${missing# }
[ -n "$missing" ] || exit 0

id=
if [ -r /etc/os-release ]; then
    # shellcheck source=/dev/null
    id=$(. /etc/os-release && echo "${ID:-}")
fi
arch=$(dpkg --print-architecture 2>/dev/null || uname -m)
if [ "$id" != debian ] || [ "$arch" != amd64 ]; then
    echo "This is not Debian on amd64. Missing, by Debian's names:" >&2
    echo "  $missing" >&2
    exit 1
fi

if [ "$(id -u)" -ne 0 ]; then
    echo "Missing packages; as root run:" >&2
    echo "sudo apt-get install --no-install-recommends $missing"
    exit 1
fi

echo "Installing: $missing"
export DEBIAN_FRONTEND=noninteractive
apt-get -q -o DPkg::Lock::Timeout=300 update
# shellcheck disable=SC2086 # a list of words
exec apt-get -q -y -o DPkg::Lock::Timeout=300 install \
    --no-install-recommends $missing
