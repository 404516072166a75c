#!/usr/bin/env bash
# Builds a tiny Linux guest out of Debian's packages: `kernel` and `initrd` in the folder named as $1, for QEMU's -kernel.
#
# The guest mounts every writable virtio disk (formatting an empty one), counts its boots on each, and talks on its
# serial console:
#     READY vda=3:hello vdb=3:hello    once up and listening for the power button: on each disk, boots and marker
#     POWEROFF clean                   the ACPI power button was heard, the disks are synced and unmounted
#     write TEXT   ->  OK write TEXT   the marker on every disk becomes TEXT (no blanks), synced
#     dirty TEXT   ->  OK dirty TEXT   the same, left in the guest's memory
# On the kernel's command line, `deaf` makes it ignore the power button.
#
# Runs as any user, from everywhere, as often as you like: what is there already is kept (3 s the first time).
# Needs apt-get, dpkg-deb, busybox-static, cpio, gzip, flock and, for a kernel that packs its modules, xz.
set -euo pipefail
me=$(realpath "$0")
mkdir -p "${1:?usage: mkguest.sh FOLDER}"
out=$(realpath "$1")

# One builder at a time, and never half a guest: it is built aside, the fingerprint is what comes last.
exec 9>"$out/lock"
flock 9
fingerprint=$(sha256sum <"$me" | cut -d ' ' -f 1)
if [ "$(cat "$out/made-by" 2>/dev/null)" = "$fingerprint" ] && [ -e "$out/kernel" ] && [ -e "$out/initrd" ]; then exit 0; fi
work=$(mktemp -d "$out/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"

# --- the kernel: apt's own index first, and one of our own where that is missing or names what is gone by now
apt_options=(-qq -o APT::Sandbox::User=root)
download_kernel() {
  package=$(apt-cache "${apt_options[@]}" depends linux-image-cloud-amd64 2>/dev/null |
    awk '$1 == "Depends:" && $2 ~ /^linux-image-[0-9]/ && !found { print $2; found = 1 }')
  [ -n "$package" ] && apt-get "${apt_options[@]}" download "$package" >/dev/null
}
if ! download_kernel; then
  echo "mkguest: fetching a package index of our own" >&2
  mkdir -p apt/lists/partial apt/cache/archives/partial
  apt_options+=(-o Dir::State::Lists="$work/apt/lists" -o Dir::Cache="$work/apt/cache")
  apt-get "${apt_options[@]}" update
  download_kernel || { echo "mkguest: Debian's linux-image-cloud-amd64 can't be had here" >&2; exit 1; }
fi
dpkg-deb -x "$package"_*.deb kernel
release=${package#linux-image-}
modules=$work/kernel/lib/modules/$release

# --- the modules, each after what it depends on (a package has no modules.dep: depmod makes it)
busybox depmod -b "$work/kernel" "$release"
root=$work/root
mkdir -p "$root"/{bin,dev,proc,sys,run,mnt,etc/acpi/PWRF,lib/modules}
for name in virtio_pci virtio_blk ext4 button evdev; do
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

# --- what runs in the guest
cp "$(command -v busybox)" "$root/bin/busybox"
cat >"$root/etc/acpi/PWRF/00000080" <<'GUEST'
#!/bin/busybox sh
export PATH=/bin
mkdir /run/going 2>/dev/null || exit 0 # pressed again
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
stty -echo # else what the host writes comes back as if we had said it
while read -r module; do insmod "/lib/modules/$module"; done </lib/modules/order

# A disk may come up a moment after its driver: wait for as many as the bus has.
wanted=$(cat /sys/bus/virtio/devices/*/device | grep -c 0x0002)
tries=0
while [ "$(ls /sys/block | grep -c '^vd')" -lt "$wanted" ] && [ $tries -lt 100 ]; do usleep 20000; tries=$((tries + 1)); done

said=
for block in /sys/block/vd*; do
  name=${block##*/}
  [ "$(cat "$block/ro")" = 0 ] || continue
  mkdir "/mnt/$name"
  mount -t ext4 "/dev/$name" "/mnt/$name" 2>/dev/null ||
    { mke2fs "/dev/$name" >/dev/null && mount -t ext4 "/dev/$name" "/mnt/$name"; } || { rmdir "/mnt/$name"; continue; }
  boots=$(($(cat "/mnt/$name/boots" 2>/dev/null || echo 0) + 1))
  echo $boots >"/mnt/$name/boots"
  said="$said $name=$boots:$(cat "/mnt/$name/marker" 2>/dev/null)"
done
sync

# A press of the button before somebody listens is lost: READY comes after.
if ! grep -qw deaf /proc/cmdline; then
  acpid -d >/dev/null 2>&1 &
  tries=0
  until ls -l /proc/$!/fd 2>/dev/null | grep -q /dev/input/event || [ $tries -gt 200 ]; do
    usleep 10000; tries=$((tries + 1))
  done
fi
echo # a line of our own, whatever the firmware has left on it
echo "READY$said"
while read -r verb text; do
  case $verb in write | dirty) ;; *) continue ;; esac
  for folder in /mnt/*; do echo "$text" >"$folder/marker"; done
  [ "$verb" = dirty ] || sync
  echo "OK $verb $text"
done
while :; do sleep 3600; done
GUEST
chmod +x "$root/init" "$root/etc/acpi/PWRF/00000080"

(cd "$root" && find . | cpio -o -H newc -R 0:0 --quiet | gzip -1) >initrd
mv initrd "$out/initrd"
mv "kernel/boot/vmlinuz-$release" "$out/kernel"
echo "$fingerprint" >"$out/made-by"
