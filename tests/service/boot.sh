#!/bin/bash
# The first process of a machine made of namespaces: it lays out the machine's file system, a
# throw-away layer over this machine's own, and becomes systemd. `machine.py` starts it by unshare.
#   boot.sh FOLDER CGROUPS [READ_ONLY_PLACE…]
# FOLDER is where the layer is mounted; nothing of that is seen outside. CGROUPS is `unified`, or
# `hybrid` for version 1 of the memory and pids controllers where the host has them there.
# READ_ONLY_PLACEs are folders that must be visible though they may be other file systems here;
# `A:B` shows A as B.
set -euo pipefail
folder=$1 cgroups=$2
shift 2

mount --make-rprivate /
mount -t tmpfs -o mode=755 layer "$folder"
mkdir "$folder"/{upper,work,root}
mount -t overlay -o "lowerdir=/,upperdir=$folder/upper,workdir=$folder/work" machine "$folder/root"
root=$folder/root

mount -t proc proc "$root/proc"
# systemd raises limits of the kernel at its start; they are the host's.
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
if [[ $cgroups == unified ]]; then
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
else
    mount -t tmpfs -o mode=755 cgroups "$root/sys/fs/cgroup"
    mkdir "$root"/sys/fs/cgroup/{unified,systemd,memory,pids}
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup/unified"
    mount -t cgroup -o none,name=systemd cgroup "$root/sys/fs/cgroup/systemd"
    for controller in memory pids; do
        mount -t cgroup -o "$controller" cgroup "$root/sys/fs/cgroup/$controller"
    done
fi

mount -t tmpfs -o mode=755 dev "$root/dev"
for device in null zero full random urandom tty; do
    : > "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root"/dev/{pts,shm}
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s fd/0 "$root/dev/stdin"
ln -s fd/1 "$root/dev/stdout"
ln -s fd/2 "$root/dev/stderr"
for place in run tmp var/tmp var/log; do
    mkdir -p "$root/$place"
    mount -t tmpfs -o mode=755 "${place##*/}" "$root/$place"
done
chmod 1777 "$root/tmp" "$root/var/tmp"
mkdir "$root/var/log/journal"  # so that users have journals of their own

for place in "$@"; do
    mkdir -p "$root${place#*:}"
    mount --bind "${place%%:*}" "$root${place#*:}"
    mount -o remount,bind,ro "$root${place#*:}"
done
# An interpreter may lie in root's home, and must be executable for everybody.
chmod a+x "$root/root"

# Services of the distribution that are of no use here, or that would touch the host.
units=$root/etc/systemd/system
rm -rf "$units" "$root/etc/systemd/user" "$root/etc/systemd/network"
mkdir -p "$units/multi-user.target.wants" "$root/run/systemd/system"
for unit in cron.service e2scrub_reap.service getty.target networking.service remote-fs.target \
    systemd-binfmt.service systemd-hwdb-update.service systemd-modules-load.service \
    systemd-sysctl.service systemd-timesyncd.service systemd-tmpfiles-setup-dev.service \
    systemd-udevd.service systemd-udev-trigger.service systemd-update-utmp-runlevel.service \
    systemd-update-utmp.service timers.target tmp.mount; do
    ln -sfn /dev/null "$units/$unit"
done
echo 0123456789abcdef0123456789abcdef > "$root/etc/machine-id"
mkdir -p "$root/etc/systemd/journald.conf.d"
printf '[Journal]\nStorage=persistent\nRateLimitBurst=0\nReadKMsg=no\nAudit=no\n' \
    > "$root/etc/systemd/journald.conf.d/machine.conf"

# Somebody to work here.
echo 'dev:x:1500:1500:A developer:/home/dev:/bin/bash' >> "$root/etc/passwd"
echo 'dev:x:1500:' >> "$root/etc/group"
echo 'dev:*:19000:0:99999:7:::' >> "$root/etc/shadow"
rm -rf "$root/home/dev" "$root/var/lib/systemd/linger"
mkdir -p "$root/home/dev"
chown 1500:1500 "$root/home/dev"

mkdir "$root/before"
cd "$root"
pivot_root . before
umount -l /before
# As systemd itself has it where it believes to be alone: services get their mounts through this.
mount --make-rshared /
ip link set lo up 2>/dev/null || true
options=()
[[ $cgroups == unified ]] || options=(systemd.unified_cgroup_hierarchy=0)
exec env -i container=namespaces PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
    /lib/systemd/systemd --system --unit=multi-user.target --show-status=0 \
    --log-level=warning --log-target=journal "${options[@]}"
