#!/bin/busybox sh
# The first process of the virtual machine: makes the host's files its root, with changes kept in
# memory, runs the script in the exchange folder there, leaves its exit code, and powers off.
/bin/busybox --install -s /bin
export PATH=/bin
stop() { echo "init: $1" >&2; reboot -f; }

mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
for module in /modules/*; do insmod "$module"; done

mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,cache=loose,ro host /lower || stop "the host's files cannot be mounted"
mount -t tmpfs tmpfs /changes
mkdir /changes/upper /changes/work
mount -t overlay -o lowerdir=/lower,upperdir=/changes/upper,workdir=/changes/work overlay /root || stop "no overlay of the host's files"

for folder in dev proc sys; do
    mkdir -p /root/$folder
    mount -o move /$folder /root/$folder
done
mkdir -p /root/dev/pts /root/dev/shm /root/run
mount -t devpts devpts /root/dev/pts
mount -t tmpfs tmpfs /root/dev/shm
mount -t tmpfs tmpfs /root/run
mount -t bpf bpf /root/sys/fs/bpf
mount -t debugfs debugfs /root/sys/kernel/debug
mount -t tracefs tracefs /root/sys/kernel/tracing
mount -t cgroup2 cgroup2 /root/sys/fs/cgroup
ip link set lo up

mkdir /root/run/exchange
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 exchange /root/run/exchange || stop "no exchange folder"
chroot /root /bin/sh /run/exchange/script </root/dev/null >/root/run/exchange/output 2>&1
echo $? >/root/run/exchange/code
umount /root/run/exchange
reboot -f
