#!/bin/sh
# layer.sh [PACKAGE...] DIR: unpacks into DIR, as a layer over the root folder,
# Debian's packages of that name, with what they need beyond this machine's
# packages. Nothing is installed: some of them would start a service. Without
# names: the HTTP servers that the end-to-end tests put beside httpd.
set -eu

packages=
while [ $# -gt 1 ]; do
    packages="$packages $1"
    shift
done
packages=${packages:-nginx-light haproxy squid varnish php-fpm}
dir=$1

mkdir -p "$dir/deb/partial"
for try in 1 2; do
    # shellcheck disable=SC2086 # a list of words
    apt-get -qq -y -o Dir::Cache::archives="$dir/deb" -o Debug::NoLocking=1 \
        --download-only --no-install-recommends install $packages \
        >"$dir/apt.log" 2>&1 && break
    if [ $try = 2 ]; then
        cat "$dir/apt.log" >&2
        echo "lab: cannot download $packages; try apt-get update" >&2
        exit 1
    fi
    # What has been replaced since the lists were made is not there any more.
    [ "$(id -u)" -ne 0 ] || apt-get -qq update || true
done

# A folder in the place of these links would hide what the host has there.
for name in bin lib lib64 sbin; do
    mkdir -p "$dir/usr/$name"
    ln -s "usr/$name" "$dir/$name"
done
for package in "$dir"/deb/*.deb; do
    dpkg-deb --fsys-tarfile "$package" |
        tar -x -C "$dir" --keep-directory-symlink --exclude=./usr/share/doc \
            --exclude=./usr/share/man --exclude=./usr/share/locale
done
rm -r "$dir/deb" "$dir/apt.log"
