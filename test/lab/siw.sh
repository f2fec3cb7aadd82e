#!/bin/sh
# siw.sh SOURCE KERNEL DIR: builds the Soft-iWARP driver from SOURCE twice,
# against the installed headers of KERNEL:
#
#   DIR/siw-stock.ko   as Debian ships the source
#   DIR/siw-tuned.ko   with siw-tuned.patch
set -eu

here=$(cd "$(dirname "$0")" && pwd)
source=$1
kernel=$2
dir=$3

mkdir -p "$dir"
for kind in stock tuned; do
    work=$dir/$kind
    cp -r "$source" "$work"
    if [ $kind = tuned ]; then
        patch -s -p1 -d "$work" <"$here/siw-tuned.patch"
    fi
    make -s -C "/lib/modules/$kernel/build" M="$work" CONFIG_RDMA_SIW=m \
        modules >"$dir/log" 2>&1 || {
        cat "$dir/log" >&2
        exit 1
    }
    strip --strip-debug -o "$dir/siw-$kind.ko" "$work/siw.ko"
    rm -r "$work" "$dir/log"
done
