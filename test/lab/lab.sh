#!/bin/bash
# shellcheck disable=SC2054 # QEMU's options contain commas
# The lab: boots Debian's kernel, with RDMA drivers, on this machine's own
# file system. See README in this folder.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)

usage() {
    cat <<END
usage: lab.sh build
       lab.sh layer [PACKAGE...]
       lab.sh run [OPTION...] -- COMMAND [ARGUMENT...]
       lab.sh shell [OPTION...]
       lab.sh pair [OPTION...] -- COMMAND [ARGUMENT...]

build   gets the kernel and builds the drivers, where that is not done yet
layer   unpacks packages that are not installed here, for --layer, and prints
        the folder; without a name, HTTP servers for the tests
run     runs COMMAND in a guest, in /src, and ends with its exit status
shell   the same with a prompt
pair    boots two guests, of one processor and 2G each, with a network link
        between them, and runs COMMAND in both, with LAB_ROLE=server and
        LAB_ROLE=client; ends with the first status that is not 0

  --src DIR      what the guest sees at /src, read-only   (the repository)
  --build DIR    what it sees at /build                   (SRC/build)
  --out DIR      what it sees at /out; keeps console.log and dmesg.txt
                 (a folder in BUILD, removed after success); with pair, its
                 subfolders server and client are
  --layer DIR    a folder that lies over the host's root folder, read-only
  --env K=V      sets a variable; may be repeated
  --mem SIZE     memory (4G)
  --cpus N       processors (2)
  --cpu MODEL    QEMU's model of them (max)
  --timeout N    seconds that COMMAND may take (1800)
  --link ROLE:PATH
                 a network card whose other end is a guest of the other ROLE,
                 server or client, at this socket; what pair is made of

Exit status: COMMAND's; 124 when the kernel complained, 125 when the guest
died, hung or did not start.
END
}

die() {
    echo "lab: $*" >&2
    exit 125
}

# hash FILE...: a name for one state of a recipe.
hash() {
    (cd "$here" && cat -- "$@") | sha256sum | cut -c 1-12
}

# make_once PATH COMMAND...: runs COMMAND with a temporary path as its last
# argument, which becomes PATH when it succeeded.
make_once() {
    local path=$1
    shift
    if [ ! -e "$path" ]; then
        rm -rf "$path".new
        "$@" "$path".new || die "$1 failed"
        mv "$path".new "$path"
    fi
}

# build: sets kernel, kerneldir and initrd, after making what is missing. Each
# part is named after its recipe, so a change of one repeats that part only.
build() {
    local depends version dir siwdir started=$SECONDS
    # The headers' package decides: the drivers are built against them.
    depends=$(dpkg-query -W -f '${Depends}' linux-headers-amd64 2>/dev/null) ||
        die "linux-headers-amd64 is missing; see packages.sh"
    [[ $depends =~ ^linux-headers-([^ ]+)\ \(=\ ([^\)]+)\) ]] ||
        die "cannot read the kernel's version from: $depends"
    kernel=${BASH_REMATCH[1]}
    version=${BASH_REMATCH[2]}
    dir=${XDG_CACHE_HOME:-$HOME/.cache}/mod_rdma/lab/$kernel
    kerneldir=$dir/kernel-$version-$(hash kernel.sh)
    siwdir=$dir/siw-$version-$(hash kernel.sh siw.sh siw-tuned.patch)
    initrd=$dir/initrd-$version-$(hash kernel.sh siw.sh siw-tuned.patch \
        initrd.sh modules init guest.sh).gz
    if [ -e "$kerneldir" ] && [ -e "$siwdir" ] && [ -e "$initrd" ]; then
        return
    fi
    "$here/packages.sh" lab >&2 || die "packages are missing"
    echo "lab: building for $kernel in $dir" >&2
    mkdir -p "$dir"
    # Two runs at once must not build the same thing twice.
    exec 9>"$dir/lock"
    flock 9
    make_once "$kerneldir" sh "$here/kernel.sh" "$kernel" "$version"
    make_once "$siwdir" sh "$here/siw.sh" "$kerneldir/siw" "$kernel"
    make_once "$initrd" sh "$here/initrd.sh" "$kerneldir" "$kernel" "$siwdir"
    exec 9>&-
    echo "lab: built in $((SECONDS - started)) s" >&2
}

# layer PACKAGE...: prints the folder that layer.sh makes, after making it if
# need be.
layer() {
    local dir=${XDG_CACHE_HOME:-$HOME/.cache}/mod_rdma/lab path
    path=$dir/layer-$({
        cat "$here/layer.sh"
        echo "$@"
    } | sha256sum | cut -c 1-12)
    if [ ! -e "$path" ]; then
        echo "lab: getting ${*:-HTTP servers}" >&2
        mkdir -p "$dir"
        exec 9>"$dir/lock"
        flock 9
        make_once "$path" sh "$here/layer.sh" "$@"
        exec 9>&-
    fi
    echo "$path"
}

job=
qemu=
timer=
socket=
guests=()
finish() {
    if [ ${#guests[@]} -gt 0 ]; then
        kill "${guests[@]}" 2>/dev/null || true
        wait
    fi
    if [ -n "$qemu" ]; then
        kill -KILL "$qemu" 2>/dev/null || true
    fi
    if [ -n "$timer" ]; then
        kill "$timer" 2>/dev/null || true
    fi
    if [ -n "$job" ]; then
        rm -rf "$job"
    fi
    if [ -n "$socket" ]; then
        rm -rf "${socket%/*}"
    fi
}

options() {
    src=$(cd "$here/../.." && pwd)
    build=
    out=
    mem=4G
    cpus=2
    cpu=max
    timeout=1800
    link=
    layer=
    accel=tcg
    env=()
    while [ $# -gt 0 ]; do
        case $1 in
        --src | --build | --out | --mem | --cpus | --cpu | --timeout | \
            --link | --layer | --env)
            [ $# -gt 1 ] || die "$1 wants a value"
            if [ "$1" = --env ]; then
                [[ $2 == [A-Za-z_]*=* ]] || die "--env wants K=V"
                env+=("$2")
            else
                printf -v "${1#--}" %s "$2"
            fi
            shift 2
            ;;
        --)
            shift
            break
            ;;
        *)
            usage >&2
            exit 125
            ;;
        esac
    done
    command=("$@")
    [[ $timeout =~ ^[0-9]+$ ]] || die "--timeout wants seconds"
    [[ $link =~ ^((server|client):.+)?$ ]] || die "--link wants ROLE:PATH"
    build=${build:-$src/build}
    mkdir -p "$build"
    keep=yes
    if [ -z "$out" ]; then
        keep=no
        out=$(mktemp -d "$build/lab.XXXXXX")
    fi
    mkdir -p "$out"
    src=$(cd "$src" && pwd -P)
    build=$(cd "$build" && pwd -P)
    out=$(cd "$out" && pwd -P)
    rm -f "$out/console.log" "$out/dmesg.txt"
}

# image: prints the kernel's file.
image() {
    local file=$kerneldir/vmlinux
    [ -e "$file" ] || file=$kerneldir/vmlinuz
    echo "$file"
}

# boots MODEL: 0 when a guest with this processor boots with KVM.
boots() {
    # QEMU may crash, leaving a core, or stop without ending.
    (ulimit -c 0 && exec timeout -s KILL 20 qemu-system-x86_64 -M q35 \
        -accel kvm -cpu "$1" -smp 2 -m 512M -nodefaults -no-user-config \
        -display none -no-reboot -kernel "$(image)" \
        -initrd "$initrd" -append "quiet panic=-1 lab.probe") \
        </dev/null >/dev/null 2>&1
}

# accelerate: sets accel to kvm where guests do boot with it, and cpu to what
# they boot with. Inside of another guest /dev/kvm may be there and not work,
# or QEMU believe in a feature that is missing. Tried once for each model since
# this machine was started.
accelerate() {
    local model verdict
    verdict=${kerneldir%/*}/kvm-$(cat /proc/sys/kernel/random/boot_id)
    verdict+=-$(hash init)-$cpu
    if [ -w /dev/kvm ] && [ ! -e "$verdict" ]; then
        for model in "$cpu" "$cpu,-arch-capabilities" ''; do
            if [ -z "$model" ] || boots "$model"; then
                echo "$model" >"$verdict.new"
                mv "$verdict.new" "$verdict"
                break
            fi
        done
    fi
    model=
    [ ! -w /dev/kvm ] || read -r model <"$verdict"
    if [ -n "$model" ]; then
        accel=kvm
        cpu=$model
    else # which emulates "rep movsb", that these recommend, byte by byte
        cpu+=,-erms,-fsrm
    fi
}

# share TAG DIR [OPTION]: appends a shared folder to the array machine.
share() {
    machine+=(-virtfs
        "local,path=${2//,/,,},mount_tag=$1,security_model=none,multidevs=remap${3:+,$3}")
}

# plug ROLE PATH: appends this end of the link to the array machine. The server
# makes the socket, for which the client waits.
plug() {
    local listen=on mac=52:54:00:77:00:01
    if [ "$1" = client ]; then
        listen=off
        mac=52:54:00:77:00:02
        until [ -S "$2" ]; do
            [ $SECONDS -lt $limit ] || die "there is no server at $2"
            sleep 0.1
        done
    fi
    machine+=(-netdev
        "stream,id=link,server=$listen,addr.type=unix,addr.path=${2//,/,,}"
        -device
        "virtio-net-pci,netdev=link,mac=$mac,host_mtu=65535,mrg_rxbuf=on")
}

# boot SECONDS: runs one guest to its end; 1 when it had to be killed.
boot() {
    local limit=$((SECONDS + $1)) log ended status=0
    log=$out/console.log
    # The kernel takes several archives in a row, each aligned.
    cp "$initrd" "$job/initrd"
    truncate -s %512 "$job/initrd"
    sh "$here/warm.sh" >>"$job/initrd" || die "warm.sh failed"
    echo "lab: $kernel, $accel, $cpus CPUs, $mem${link:+, ${link%%:*}}" >&2

    machine=(-name mod_rdma-lab -M q35 -cpu "$cpu"
        -accel "${accel/#tcg/tcg,thread=multi}"
        -smp "$cpus" -m "$mem" -nodefaults -no-user-config -display none
        -no-reboot -kernel "$(image)" -initrd "$job/initrd"
        -append "console=ttyS0 loglevel=5 panic=-1 mitigations=off nokaslr norandmaps nowatchdog rcupdate.rcu_cpu_stall_timeout=300 random.trust_cpu=on clocksource=tsc tsc=reliable${layer:+ lab.layer}"
        -chardev "file,id=console,path=${log//,/,,}" -serial chardev:console
        -device virtio-serial-pci)
    share host / readonly=on
    share src "$src" readonly=on
    share build "$build"
    share out "$out"
    share job "$job"
    if [ -n "$layer" ]; then
        share over "$layer" readonly=on
    fi
    share modules "$kerneldir/lib/modules/$kernel" readonly=on
    if [ -n "$link" ]; then
        plug "${link%%:*}" "${link#*:}"
    fi

    if [ -e "$job/shell" ]; then
        machine+=(-chardev stdio,id=tty,signal=off
            -device virtconsole,chardev=tty)
    else
        # Through cat, because QEMU opens these by name, which not everything
        # that may be our standard output allows.
        exec 5> >(exec cat) 6> >(exec cat >&2)
        machine+=(-chardev file,id=stdout,path=/dev/fd/5
            -device virtserialport,chardev=stdout,name=lab.stdout
            -chardev file,id=stderr,path=/dev/fd/6
            -device virtserialport,chardev=stderr,name=lab.stderr)
    fi

    # Should this script be killed outright, the guest goes with it.
    exec 4<&0
    setpriv --pdeathsig KILL qemu-system-x86_64 "${machine[@]}" <&4 4<&- &
    qemu=$!
    exec 4<&- 5>&- 6>&-
    sleeper "$1"
    # Not by polling, which would take time from what is measured in the guest.
    wait -n -p ended "$qemu" "$timer" || status=$?
    if [ "$ended" = "$timer" ]; then
        timer=
        kill -KILL "$qemu"
        wait "$qemu" 2>/dev/null || true
        qemu=
        return 1
    fi
    qemu=
    kill "$timer"
    timer=
    [ $status = 0 ] || echo "lab: QEMU ended with status $status" >&2
    wait
}

# sleeper SECONDS: sets timer to a process that ends then, or with this one.
sleeper() {
    setpriv --pdeathsig KILL sleep "$1" &
    timer=$!
}

# complaints: prints what the kernel complained about; 1 when it did not.
complaints() {
    local log=$out/dmesg.txt pattern
    pattern='WARNING: |BUG: |Oops|Call Trace|general protection|Kernel panic'
    pattern+='|self-detected stall|Internal error'
    # A guest that died left no dmesg.
    [ -s "$log" ] || log=$out/console.log
    [ -e "$log" ] || return 1
    grep -E -m 1 -A 30 "$pattern" "$log" || return 1
    echo "lab: the kernel complained, see $log"
}

guest() {
    local status=125
    accelerate
    env+=("LAB_ACCEL=$accel")
    job=$(mktemp -d)
    echo "$timeout" >"$job/timeout"
    if [ "$1" = shell ]; then
        timeout=$((10 * 365 * 86400))
        {
            echo "term=$(printf %q "${TERM:-linux}")"
            if [ -t 0 ]; then
                stty size | sed 's/\(.*\) \(.*\)/rows=\1 columns=\2/'
            fi
        } >"$job/shell"
    else
        {
            printf 'export'
            printf ' %q' "${env[@]}"
            echo
            printf 'exec'
            printf ' %q' "${command[@]}"
            echo
        } >"$job/command"
    fi

    # Booting and ending may take a minute on a loaded machine.
    if ! boot $((timeout + 120)); then
        echo "lab: the guest did not end" >&2
    fi

    if [ -e "$job/timed-out" ]; then
        echo "lab: timed out after $timeout s" >&2
    elif [ -e "$job/status" ]; then
        status=$(cat "$job/status")
    else
        echo "lab: the guest died; the last lines of $out/console.log:" >&2
        tail -n 30 "$out/console.log" >&2 || true
    fi
    if complaints >"$job/complaints"; then
        cat "$job/complaints" >&2
        status=124
    fi
    tidy "$status"
    exit "$status"
}

# tidy STATUS: keeps the output folder if it was asked for or may be needed.
tidy() {
    if [ $keep = no ]; then
        if [ "$1" = 0 ]; then
            rm -rf "$out"
        else
            echo "lab: kept $out" >&2
        fi
    fi
}

# pair: one `run` for each end, with a watchdog and a console of its own.
pair() {
    local role k one ended status=0 words=()
    socket=$(mktemp -d)/link
    for k in "${env[@]}"; do
        words+=(--env "$k")
    done
    for role in server client; do
        "$here/lab.sh" run --src "$src" --build "$build" --out "$out/$role" \
            --mem "$mem" --cpus "$cpus" --cpu "$cpu" --timeout "$timeout" \
            --link "$role:$socket" "${words[@]}" --env "LAB_ROLE=$role" \
            -- "${command[@]}" &
        guests+=($!)
    done
    while [ ${#guests[@]} -gt 0 ]; do
        one=0
        wait -n -p ended "${guests[@]}" ${timer:+"$timer"} || one=$?
        if [ "$ended" = "$timer" ]; then
            timer=
            kill "${guests[@]}"
            continue
        fi
        for k in "${!guests[@]}"; do
            if [ "${guests[k]}" = "$ended" ]; then
                unset "guests[k]"
            fi
        done
        if [ $status = 0 ] && [ $one != 0 ]; then
            status=$one
            sleeper 30 # the other may see it by itself
        fi
    done
    tidy "$status"
    exit "$status"
}

trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

verb=${1:-}
[ $# -eq 0 ] || shift
case $verb in
build)
    build
    ;;
layer)
    layer "$@"
    ;;
run)
    options "$@"
    [ ${#command[@]} -gt 0 ] || die "run wants a command"
    build
    guest run
    ;;
shell)
    options "$@"
    build
    guest shell
    ;;
pair)
    options --cpus 1 --mem 2G "$@"
    [ ${#command[@]} -gt 0 ] || die "pair wants a command"
    build
    pair
    ;;
*)
    usage >&2
    exit 125
    ;;
esac
