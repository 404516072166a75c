#!/usr/bin/env bash
# mkguest.sh FOLDER [agent]: builds a tiny Linux guest from Debian packages, as `kernel` and `initrd` in FOLDER, for QEMU's
# -kernel. `agent`: with QEMU's guest agent, which answers on the channel org.qemu.guest_agent.0.
#
# The guest mounts every writable virtio disk, formats empty ones, counts its boots on each disk, and uses this protocol
# on its serial console:
#     READY vda=3:hello vdb=3:hello    it has booted and reacts to the power button; for each disk, boots and marker
#     POWEROFF clean                   the ACPI power button was pressed; the disks are synced and unmounted
#     write TEXT   ->  OK write TEXT   the marker on every disk is now TEXT (without spaces), synced
#     dirty TEXT   ->  OK dirty TEXT   the same, but not synced: the marker may only be in the guest's memory
#     tick CHAR    ->  OK tick CHAR    from now on a program writes the time to the first disk every 10 ms
#     gaps CHAR    ->  OK gaps CHAR N P99 MAX    how many gaps there were between two writes since, and how long in ms
# `deaf` on the kernel's command line makes the guest ignore the power button.
#
# Can be run by any user, from any folder, and repeatedly: an existing guest is kept. The first run takes 3 s.
# Needs apt-get, dpkg-deb, busybox-static, cpio, flock and, for a kernel with compressed modules, xz. `agent` needs the
# libraries of Debian's qemu-system on this machine.
set -euo pipefail
me=$(realpath "$0")
mkdir -p "${1:?usage: mkguest.sh FOLDER}"
out=$(realpath "$1")
with=${2:-}

# One process builds at a time, in a temporary folder. The fingerprint is written last, so an incomplete guest is never used.
exec 9>"$out/lock"
flock 9
fingerprint="$(sha256sum <"$me" | cut -d ' ' -f 1) $with"
if [ "$(cat "$out/made-by" 2>/dev/null)" = "$fingerprint" ] && [ -e "$out/kernel" ] && [ -e "$out/initrd" ]; then exit 0; fi
work=$(mktemp -d "$out/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"

# --- the kernel: with apt's package index, or with a private one if that is missing or out of date
apt_options=(-qq -o APT::Sandbox::User=root)
download_kernel() {
  package=$(apt-cache "${apt_options[@]}" depends linux-image-cloud-amd64 2>/dev/null |
    awk '$1 == "Depends:" && $2 ~ /^linux-image-[0-9]/ && !found { print $2; found = 1 }')
  [ -n "$package" ] && apt-get "${apt_options[@]}" download "$package" >/dev/null
}
if ! download_kernel; then
  echo "mkguest: fetching a private package index" >&2
  mkdir -p apt/lists/partial apt/cache/archives/partial
  apt_options+=(-o Dir::State::Lists="$work/apt/lists" -o Dir::Cache="$work/apt/cache")
  apt-get "${apt_options[@]}" update
  download_kernel || { echo "mkguest: cannot download Debian's linux-image-cloud-amd64" >&2; exit 1; }
fi
dpkg-deb -x "$package"_*.deb kernel
[ -d kernel/lib ] || ln -s usr/lib kernel/lib # since Debian 13 the modules are there
if [ "$with" = agent ]; then
  apt-get "${apt_options[@]}" download qemu-guest-agent >/dev/null
  dpkg-deb -x qemu-guest-agent_*.deb agent
fi
release=${package#linux-image-}
modules=$work/kernel/lib/modules/$release

# --- the modules, each after its dependencies (the package has no modules.dep: depmod creates it)
busybox depmod -b "$work/kernel" "$release"
root=$work/root
mkdir -p "$root"/{bin,dev,proc,sys,run,mnt,etc/acpi/PWRF,lib/modules}
for name in virtio_pci virtio_blk ext4 button evdev ${with:+virtio_console}; do
  path=$(cd "$modules" && find . -name "$name.ko*" -printf '%P\n')
  [ -n "$path" ] || continue # built into the kernel
  sed -n "s|^$path: *||p" "$modules/modules.dep" | tr ' ' '\n' | tac
  echo "$path"
done | awk 'NF && !seen[$0]++' >load-order
while read -r module; do
  name=$(basename "${module%.xz}")
  case $module in
    *.xz) xz -dc "$modules/$module" ;;
    *) cat "$modules/$module" ;;
  esac >"$root/lib/modules/$name"
  echo "$name" >>"$root/lib/modules/order"
done <load-order

# --- the guest's programs
cp "$(command -v busybox)" "$root/bin/busybox"
if [ "$with" = agent ]; then
  cp agent/usr/sbin/qemu-ga "$root/bin/"
  ldd agent/usr/sbin/qemu-ga | awk '/=> \// { print $3 } /^\t\// { print $1 }' >libraries
  while read -r library; do
    mkdir -p "$root/$(dirname "$library")"
    cp -L "$library" "$root/$library"
  done <libraries
fi
cat >"$root/etc/acpi/PWRF/00000080" <<'GUEST'
#!/bin/busybox sh
export PATH=/bin
mkdir /run/powering-off 2>/dev/null || exit 0 # the button was pressed again
sync
for folder in /mnt/*; do umount "$folder" || mount -o remount,ro "$folder"; done 2>/dev/null
echo "POWEROFF clean" >/dev/console
poweroff -f
GUEST
cat >"$root/init" <<'GUEST'
#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty -echo # otherwise the host would read its own commands back
while read -r module; do insmod "/lib/modules/$module"; done </lib/modules/order

# A disk may appear some time after its driver: wait for all disks of the bus.
disks=$(cat /sys/bus/virtio/devices/*/device | grep -c 0x0002)
tries=0
while [ "$(ls /sys/block | grep -c '^vd')" -lt "$disks" ] && [ $tries -lt 100 ]; do usleep 20000; tries=$((tries + 1)); done

states=
for block in /sys/block/vd*; do
  name=${block##*/}
  [ "$(cat "$block/ro")" = 0 ] || continue
  mkdir "/mnt/$name"
  mount -t ext4 "/dev/$name" "/mnt/$name" 2>/dev/null ||
    { mke2fs "/dev/$name" >/dev/null && mount -t ext4 "/dev/$name" "/mnt/$name"; } || { rmdir "/mnt/$name"; continue; }
  boots=$(($(cat "/mnt/$name/boots" 2>/dev/null || echo 0) + 1))
  echo $boots >"/mnt/$name/boots"
  states="$states $name=$boots:$(cat "/mnt/$name/marker" 2>/dev/null)"
done
sync

# A press of the power button is lost until acpid listens, so print READY only then.
if ! grep -qw deaf /proc/cmdline; then
  acpid -d >/dev/null 2>&1 &
  tries=0
  until ls -l /proc/$!/fd 2>/dev/null | grep -q /dev/input/event || [ $tries -gt 200 ]; do
    usleep 10000; tries=$((tries + 1))
  done
fi

# The agent: its state file tells a restarted agent that the file systems are frozen.
if [ -x /bin/qemu-ga ]; then
  for port in /sys/class/virtio-ports/*; do
    [ "$(cat "$port/name")" = org.qemu.guest_agent.0 ] || continue
    while :; do qemu-ga -m virtio-serial -p "/dev/${port##*/}" -t /run -f /run/agent.pid; sleep 1; done >/dev/null 2>&1 &
  done
fi
echo # start a new line: the firmware may have left text on this one
echo "READY$states"
tick() { while :; do read -r up _ </proc/uptime; echo "$up" >>"$1"; usleep 10000; done; }
gaps() { # FILE: number, 99th percentile and maximum of the gaps between two lines, in ms
  awk 'NR > 1 { print int(($1 - last) * 1000 + 0.5) } { last = $1 }' "$1" | sort -n |
    awk '{ gap[NR] = $1 } END { print NR, gap[int(NR * 0.99 + 0.5)], gap[NR] }'
}
first=$(ls -d /mnt/* | head -n 1)
while read -r verb text; do
  case $verb in
    tick) [ -z "$ticker" ] || kill "$ticker"; rm -f "$first/ticks"; tick "$first/ticks" & ticker=$!; echo "OK tick $text"; continue ;;
    gaps) echo "OK gaps $text $(gaps "$first/ticks")"; continue ;;
    write | dirty) ;;
    *) continue ;;
  esac
  for folder in /mnt/*; do echo "$text" >"$folder/marker"; done
  [ "$verb" = dirty ] || sync
  echo "OK $verb $text"
done
while :; do sleep 3600; done
GUEST
chmod +x "$root/init" "$root/etc/acpi/PWRF/00000080"

# not compressed, because an emulated CPU would take longer to boot
(cd "$root" && find . | cpio -o -H newc -R 0:0 --quiet) >initrd
mv initrd "$out/initrd"
mv "kernel/boot/vmlinuz-$release" "$out/kernel"
echo "$fingerprint" >"$out/made-by"
