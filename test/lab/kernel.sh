#!/bin/sh
# kernel.sh KERNEL VERSION DIR: fetches what the lab takes from Debian's own
# kernel packages, without installing them:
#
#   DIR/vmlinux        the kernel (vmlinuz where it could not be unpacked)
#   DIR/lib/modules/   the modules that a guest may want, and the package itself
#   DIR/siw/           the source of the Soft-iWARP driver
#
# KERNEL is a release such as uname -r prints, VERSION the packages' version.
set -eu

kernel=$1
version=$2
dir=$3
series=$(echo "$kernel" | sed 's/^\([0-9]*\.[0-9]*\).*/\1/')
siw=linux-source-$series/drivers/infiniband/sw/siw

mkdir -p "$dir/deb"
(
    cd "$dir/deb"
    apt-get -qq download "linux-image-$kernel=$version" \
        "linux-source-$series=$version" 2>apt.log || {
        cat apt.log >&2
        echo "lab: cannot download kernel packages $version;" \
            "try apt-get update" >&2
        exit 1
    }
)

# Only a part of the modules: all of them would be 400 MB.
m=./lib/modules/$kernel
dpkg-deb --fsys-tarfile "$dir"/deb/linux-image-*.deb |
    tar -x -C "$dir" "./boot/vmlinuz-$kernel" "$m/modules.order" \
        "$m/modules.builtin" "$m/modules.builtin.modinfo" \
        "$m/kernel/arch" "$m/kernel/crypto" "$m/kernel/lib" \
        "$m/kernel/net" "$m/kernel/drivers/virtio" \
        "$m/kernel/drivers/char/virtio_console.ko" \
        "$m/kernel/drivers/infiniband/core" \
        "$m/kernel/drivers/infiniband/sw" \
        "$m/kernel/drivers/net/dummy.ko" "$m/kernel/drivers/net/ifb.ko" \
        "$m/kernel/drivers/net/veth.ko" \
        "$m/kernel/drivers/net/net_failover.ko" \
        "$m/kernel/drivers/net/virtio_net.ko" \
        "$m/kernel/fs/9p" "$m/kernel/fs/netfs" "$m/kernel/fs/fscache" \
        "$m/kernel/fs/configfs" "$m/kernel/fs/overlayfs"
depmod -b "$dir" "$kernel"

dpkg-deb --fsys-tarfile "$dir"/deb/linux-source-*.deb |
    tar -xO "./usr/src/linux-source-$series.tar.xz" |
    tar -xJ -C "$dir" "$siw"
mv "$dir/$siw" "$dir/siw"
# Where its guests find a real file that is larger than any window.
mv "$dir"/deb/linux-image-*.deb "$dir/lib/modules/$kernel/linux-image.deb"
rm -r "$dir/linux-source-$series" "$dir/deb"

# A bzImage would spend seconds of emulation on unpacking itself, so that is
# done here, once. Offsets: Documentation/x86/boot.rst of the kernel.
image=$dir/boot/vmlinuz-$kernel
field() {
    od -An -j "$1" -N "$2" -t "u$2" "$image" | tr -d ' '
}
start=$((($(field 497 1) + 1) * 512 + $(field 584 4)))
length=$(($(field 588 4) - 4))
if tail -c +$((start + 1)) "$image" | head -c "$length" |
    xz -dc >"$dir/vmlinux" 2>/dev/null; then
    # Where its guests find a real file of some size.
    mv "$image" "$dir/lib/modules/$kernel/vmlinuz"
else
    # Not xz: QEMU boots this one as well, only more slowly.
    rm -f "$dir/vmlinux"
    mv "$image" "$dir/vmlinuz"
fi
rmdir "$dir/boot"
