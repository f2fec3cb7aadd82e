#!/bin/sh
# warm.sh: prints, for the guest's initramfs, an archive of what tests start most
# often of this machine's programs, with what they load. So the guest has it in
# memory: over 9p an open() is several round trips, which take milliseconds where
# the guest is emulated, and a program opens dozens of files before it does
# anything. What is missing here is found over 9p, as everything else is.
set -eu

PATH=/usr/bin:/usr/sbin:/bin:/sbin
programs='sh bash env cat cp rm sleep tr head sed grep awk setsid python3
          openssl curl ip tc rdma rping apache2'
libs=/usr/lib/$(gcc -print-multiarch)
python=$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
packages=${python%/*}/python3/dist-packages
folders="/usr/lib/apache2/modules $libs/libibverbs $python /usr/lib/locale/C.utf8
         $packages/pytest $packages/_pytest $packages/pluggy $packages/attr
         $packages/iniconfig $packages/packaging $packages/py"
files="/etc/ld.so.cache /etc/nsswitch.conf /etc/passwd /etc/group
       /etc/mime.types /etc/ssl/openssl.cnf"
list=$(mktemp)
trap 'rm -f "$list"' EXIT

# shellcheck disable=SC2086 # lists of words
{
    for program in $programs; do
        command -v "$program" || true
    done
    # Not what is there to be linked.
    find $folders -type f ! -name '*.a' ! -path '*/config-*' 2>/dev/null || true
} >"$list"
# Libraries; a path by way of a link is packed as the link and what it leads to.
{
    echo "$files" | tr -s ' ' '\n'
    cat "$list"
    grep -E '\.so|bin/' "$list" | xargs ldd 2>/dev/null |
        sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p; s/^[[:space:]]*\(\/[^ ]*ld-[^ ]*\) .*/\1/p' |
        sort -u
} | while read -r path; do
    while :; do
        case $path in # links to folders, which a folder here would hide
        /lib/* | /lib64/* | /bin/* | /sbin/*) path=/usr$path ;;
        esac
        [ ! -e "$path" ] || echo "$path"
        [ -L "$path" ] || break
        target=$(readlink "$path")
        case $target in
        /*) path=$target ;;
        *) path=$(realpath -s "${path%/*}/$target") ;;
        esac
    done
done | sort -u >"$list.all"
mv "$list.all" "$list"

# The kernel wants a folder before what is in it.
cd /
awk -F/ '{
    path = ""
    for (i = 2; i < NF; i++) {
        path = path (i > 2 ? "/" : "") $i
        if (!seen[path]++)
            print path
    }
    print substr($0, 2)
}' "$list" | cpio -o -H newc --quiet
