#!/bin/sh
# php.sh DIR: fetches DIR/php-fpm, PHP's FastCGI server, out of Debian's
# package, without installing that: it would start a service.
set -eu

dir=$1

mkdir -p "$dir"
(
    cd "$dir"
    apt-get -qq download php8.2-fpm 2>apt.log || {
        cat apt.log >&2
        echo "lab: cannot download php8.2-fpm; try apt-get update" >&2
        exit 1
    }
)
dpkg-deb --fsys-tarfile "$dir"/php8.2-fpm_*.deb |
    tar -xO ./usr/sbin/php-fpm8.2 >"$dir/php-fpm"
chmod 755 "$dir/php-fpm"
rm "$dir"/php8.2-fpm_*.deb "$dir/apt.log"
missing=$(ldd "$dir/php-fpm" | grep 'not found') || exit 0
echo "lab: php-fpm lacks: $missing" >&2
exit 1
