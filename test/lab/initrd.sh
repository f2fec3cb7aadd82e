#!/bin/sh
# initrd.sh KERNELDIR KERNEL SIWDIR FILE: packs the guest's initramfs: busybox,
# the modules named in `modules` with what they depend on, both Soft-iWARP
# builds, init and guest.sh.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
kerneldir=$1
kernel=$2
siw=$3
file=$4

root=$file.d
rm -rf "$root"
mkdir -p "$root/bin" "$root/modules" "$root/lab"
cp /bin/busybox "$root/bin/busybox"
cp "$here/init" "$root/init"
cp "$here/guest.sh" "$siw/siw-stock.ko" "$siw/siw-tuned.ko" "$root/lab"
chmod 755 "$root/init" "$root/lab/guest.sh"

# modprobe prints in the order in which they have to be inserted.
sed 's/#.*//' "$here/modules" | while read -r module; do
    [ -z "$module" ] || modprobe -d "$kerneldir" -S "$kernel" \
        --ignore-install --show-depends "$module"
done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' >"$root/list"
[ -s "$root/list" ]
while read -r path; do
    cp "$path" "$root/modules"
    basename "$path"
done <"$root/list" >"$root/modules/order"
rm "$root/list"

(cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) >"$file"
rm -r "$root"
