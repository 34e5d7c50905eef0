#!/usr/bin/env bash
# Debian's linux-image-7.3.4: no kernel inside, none in /boot, and no package "-unsigned".
#
# Up to 6.12 linux-image-VERSION-unsigned holds boot/vmlinuz-VERSION, the modules and the
# configuration; tools that build an initramfs or a test machine unpack that one package. The 7.3
# kernels of trixie-backports are split: linux-image holds no file but links to documentation, the kernel is
# usr/lib/modules/VERSION/vmlinuz in linux-binary, configuration and modules.order are in
# linux-base, the modules are in linux-modules. None of the three below holds anything in /boot. Unpacking
# linux-image alone succeeds and gives nothing.
# Needs: Debian with apt; takes the mirror of this machine's sources. 15 MB, in a temporary folder.
set -euo pipefail

release=7.3.4+deb13-amd64
version=7.3.4-1~bpo13+1

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
mkdir -p lists/partial cache/archives/partial
mirror=$(sed -n 's/^URIs: *\([^ ]*\).*/\1/p' /etc/apt/sources.list.d/debian.sources | head -n 1)
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie-backports main" > sources.list
options=(-qq -o "Dir::Etc::SourceList=$folder/sources.list" -o Dir::Etc::SourceParts=/dev/null
  -o "Dir::State::Lists=$folder/lists" -o "Dir::Cache=$folder/cache" -o Dir::State::status=/dev/null
  -o APT::Architecture=amd64 -o APT::Architectures=amd64 -o APT::Sandbox::User=root)
apt-get "${options[@]}" update
{
  for part in image binary base; do
    apt-get "${options[@]}" download "linux-$part-$release=$version"
    echo "linux-$part:"
    # Regular files, without documentation.
    dpkg-deb --fsys-tarfile "linux-$part-$release"_*.deb | tar tv \
      | awk '/^-/ && $NF !~ /usr\/share\// { print "  " $NF }'
  done
  echo "packages named $release-unsigned: $(apt-cache "${options[@]}" search --names-only "$release-unsigned" | wc -l)"
} > seen
cat seen
diff seen - <<'EXPECTED' || { echo "the packages are different now" >&2; exit 1; }
linux-image:
linux-binary:
  ./usr/lib/modules/7.3.4+deb13-amd64/vmlinuz
linux-base:
  ./usr/lib/modules/7.3.4+deb13-amd64/System.map
  ./usr/lib/modules/7.3.4+deb13-amd64/config
  ./usr/lib/modules/7.3.4+deb13-amd64/modules.builtin
  ./usr/lib/modules/7.3.4+deb13-amd64/modules.builtin.modinfo
  ./usr/lib/modules/7.3.4+deb13-amd64/modules.order
packages named 7.3.4+deb13-amd64-unsigned: 0
EXPECTED
