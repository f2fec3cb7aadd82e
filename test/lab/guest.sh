#!/bin/sh
# Process 1 of the guest once its root is mounted, run by busybox. Sets up what
# a Debian host has, runs the job that lab.sh left in /run/lab/job, leaves its
# exit status there and ends the guest.
B=/run/lab/busybox
job=/run/lab/job

$B mount -t proc proc /proc
$B mount -t sysfs sys /sys
$B mount -t devpts -o gid=5,mode=620,ptmxmode=666 pts /dev/pts
$B mount -t cgroup2 cgroup /sys/fs/cgroup
$B ln -sf /proc/self/fd /dev/fd
$B ln -sf /proc/self/fd/0 /dev/stdin
$B ln -sf /proc/self/fd/1 /dev/stdout
$B ln -sf /proc/self/fd/2 /dev/stderr
$B mkdir -p /run/lock
$B chmod 1777 /run/lock
$B hostname lab
$B ip link set lo up
cat >/etc/hosts <<'END'
127.0.0.1 localhost lab
::1 localhost ip6-localhost
10.77.0.1 server
10.77.0.2 client
END

# A long wait in the kernel is no fault of it: `rdma link del` waits for whoever
# has the device open. What hangs is for the lab's own watchdog.
echo 0 >/proc/sys/kernel/hung_task_warnings 2>/dev/null

# The job is in a cgroup, so that whatever it leaves behind can be ended.
$B mkdir /sys/fs/cgroup/job

# run COMMAND...: as the job, in a clean environment.
run() {
    echo 0 >/sys/fs/cgroup/job/cgroup.procs
    cd /src || exit 125
    exec /usr/bin/env -i \
        PATH=/usr/bin:/usr/sbin:/bin:/sbin:/usr/local/bin:/usr/local/sbin \
        HOME=/root USER=root LOGNAME=root SHELL=/bin/bash LANG=C.UTF-8 \
        TERM=dumb PYTHONDONTWRITEBYTECODE=1 LAB=guest \
        "$@"
}

# stop: ends every process of the job, those it moved to other cgroups too.
stop() {
    for kill in /sys/fs/cgroup/*/cgroup.kill; do
        echo 1 >"$kill"
    done
}

end() {
    $B dmesg >/out/dmesg.txt
    echo "$1" >$job/status.new
    $B mv $job/status.new $job/status
    $B umount /build || $B sync
    echo b >/proc/sysrq-trigger
    $B sleep 60
}

if [ -e $job/shell ]; then
    (
        exec </dev/hvc0 >/dev/hvc0 2>&1
        # shellcheck source=/dev/null
        . $job/shell
        $B stty rows "${rows:-24}" columns "${columns:-80}" 2>/dev/null
        # Not the user's own start-up files: they may take a minute here.
        run TERM="${term:-linux}" PS1='lab:\w# ' $B setsid -c \
            /bin/bash --rcfile /src/test/lab/shellrc --noprofile -i
    ) &
    wait $!
    status=$?
    stop
    end $status
fi

# Two pipes, each emptied into a port to the host. Not the ports themselves:
# only one process can open those, and /dev/stderr has to work.
for port in /sys/class/virtio-ports/*; do
    read -r name <"$port/name"
    case $name in
    lab.stdout) stdout=/dev/${port##*/} ;;
    lab.stderr) stderr=/dev/${port##*/} ;;
    esac
done
$B mkfifo -m 666 /run/lab/stdout /run/lab/stderr
$B cat </run/lab/stdout >"$stdout" &
cats=$!
$B cat </run/lab/stderr >"$stderr" &
cats="$cats $!"

# The watchdog inside can still say what hangs; lab.sh has one for the guest.
read -r seconds <$job/timeout
(
    $B sleep "$seconds"
    $B touch $job/timed-out
    {
        echo "lab: no end after $seconds seconds; the processes:"
        for proc in /proc/[0-9]*; do
            read -r name <"$proc/comm"
            command=$($B tr '\0' ' ' <"$proc/cmdline")
            # Kernel threads have no command line.
            [ -z "$command" ] || echo "lab:  ${proc#/proc/} $name" \
                "$($B cat "$proc/wchan"): $command"
        done
    } >/run/lab/stderr 2>/dev/null
    stop
) &
watchdog=$!

(run $B setsid /bin/bash $job/command) \
    </dev/null >/run/lab/stdout 2>/run/lab/stderr &
wait $!
status=$?
stop
kill $watchdog
# shellcheck disable=SC2086 # two process ids
wait $cats
end "$status"
