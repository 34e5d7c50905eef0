#!/usr/bin/env bash
# Debian's 7.3.4 kernels: kexec_file_load on amd64, not on arm64; no iommufd on either; lazy preemption.
#
# A program that starts another kernel by kexec_file_load(2) works on amd64 and gets ENOSYS on arm64,
# from the same source package: it needs kexec-tools with --kexec-syscall there, and with it the old
# call's limits (no signatures). preempt=none on the command line does nothing on arm64, where the
# model of preemption is fixed when the kernel is built. VFIO's character devices, which newer VMMs
# open first, exist on neither, since they need iommufd. Both preempt lazily, as Linux can since 6.13.
# Needs: Debian with apt; takes the mirror of this machine's sources. 2 MB, in a temporary folder.
set -euo pipefail

release=7.3.4+deb13
version=7.3.4-1~bpo13+1

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
mirror=$(sed -n 's/^URIs: *\([^ ]*\).*/\1/p' /etc/apt/sources.list.d/debian.sources | head -n 1)
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie-backports main" > sources.list
{
  for architecture in amd64 arm64; do
    mkdir -p "$architecture/lists/partial" "$architecture/cache/archives/partial"
    options=(-qq -o "Dir::Etc::SourceList=$folder/sources.list" -o Dir::Etc::SourceParts=/dev/null
      -o "Dir::State::Lists=$folder/$architecture/lists" -o "Dir::Cache=$folder/$architecture/cache"
      -o Dir::State::status=/dev/null -o APT::Architecture=$architecture
      -o APT::Architectures=$architecture -o APT::Sandbox::User=root)
    apt-get "${options[@]}" update
    apt-get "${options[@]}" download "linux-base-$release-$architecture=$version"
    echo "$architecture:"
    dpkg-deb --fsys-tarfile "linux-base-$release-${architecture}"_*.deb | tar xO --wildcards '*/config' > config
    for option in KEXEC KEXEC_FILE PREEMPT_LAZY PREEMPT_DYNAMIC IOMMUFD VFIO; do
      echo "  $option $(sed -n "s/^CONFIG_$option=//p; s/^# CONFIG_$option is not set/no/p" config)"
    done
  done
} > seen
cat seen
diff seen - <<'EXPECTED' || { echo "the kernels are configured differently now" >&2; exit 1; }
amd64:
  KEXEC y
  KEXEC_FILE y
  PREEMPT_LAZY y
  PREEMPT_DYNAMIC y
  IOMMUFD no
  VFIO m
arm64:
  KEXEC y
  KEXEC_FILE no
  PREEMPT_LAZY y
  PREEMPT_DYNAMIC no
  IOMMUFD no
  VFIO m
EXPECTED
