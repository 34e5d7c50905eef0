//! What the probe says of functions that this host uses, and of their drivers.

use super::*;

const OTHER: &str = "0000:02:00.0";

impl MadeUp {
    /// A host where a driver of its own has `OTHER`.
    fn with(name: &str, driver: &str) -> Self {
        let host = Self::new(name);
        host.add_function(OTHER, driver, "8");
        host
    }

    /// A block device below a function.
    fn add_disk(&self, function: &str, path: &str, number: &str) {
        let name = path.rsplit('/').next().unwrap();
        let folder = format!("sys/bus/pci/devices/{function}/{path}");
        self.add_device("block", name, &folder);
        self.write(&format!("{folder}/dev"), format!("{number}\n").as_bytes());
    }

    /// A block device that is made of others.
    fn add_holder(&self, name: &str, number: &str, of: &[&str]) {
        let folder = format!("sys/devices/virtual/block/{name}");
        self.add_device("block", name, &folder);
        self.write(&format!("{folder}/dev"), format!("{number}\n").as_bytes());
        for block in of {
            self.link(&format!("sys/class/block/{block}/holders/{name}"), &folder);
        }
    }

    fn add_interface(&self, folder: &str, name: &str, state: &str) {
        let folder = format!("{folder}/net/{name}");
        self.add_device("net", name, &folder);
        self.write(&format!("{folder}/operstate"), format!("{state}\n").as_bytes());
    }

    /// A network card, that is, an interface of a function.
    fn add_card(&self, function: &str, name: &str, state: &str) {
        let folder = format!("sys/bus/pci/devices/{function}");
        self.add_interface(&folder, name, state);
        self.link(&format!("sys/class/net/{name}/device"), &folder);
    }

    fn add_device(&self, class: &str, name: &str, folder: &str) {
        self.link(&format!("sys/class/{class}/{name}"), folder);
    }

    fn mount(&self, process: &str, lines: &str) {
        self.write(&format!("proc/{process}/mountinfo"), lines.as_bytes());
    }

    /// Asserts that no command is given for `OTHER`, and what is said of its use.
    fn refuses(&self, words: &str) {
        let driver = self.check(OTHER, "driver");
        let remedy = driver.remedy.unwrap();
        assert!(!driver.ok && driver.undo.is_none() && remedy.contains("leave it"), "{remedy}");
        let used = self.check(OTHER, "in use");
        assert_eq!((used.ok, used.problem), (false, Some("in-use")));
        assert!(used.found.contains(words), "{}", used.found);
        let text = text(&self.probe(&[OTHER]), false);
        assert!(!text.contains("unbind") && !text.contains("echo"), "{text}");
        let json = serde_json::to_string(&self.probe(&[OTHER])).unwrap();
        assert!(!json.contains("unbind"), "{json}");
    }

    /// Asserts that commands are given for `OTHER`, with a way back; what is said of its use.
    fn tells_how(&self) -> String {
        let driver = self.check(OTHER, "driver");
        assert_eq!((driver.ok, driver.problem), (false, Some("driver")));
        let remedy = driver.remedy.unwrap();
        assert!(
            remedy.contains(&format!("echo {OTHER} > /sys/bus/pci/devices/{OTHER}/driver/unbind"))
        );
        let undo = driver.undo.unwrap();
        assert!(undo.contains(&format!("echo > /sys/bus/pci/devices/{OTHER}/driver_override")));
        assert!(text(&self.probe(&[OTHER]), false).contains("to give it back"));
        let functions = self.probe(&[OTHER]).functions;
        let used = functions[0].checks.iter().find(|check| check.name == "in use");
        used.map(|check| check.found.clone()).unwrap_or_default()
    }
}

#[test]
fn a_mounted_disk_is_not_taken_away() {
    let host = MadeUp::with("mounted", "nvme");
    host.add_disk(OTHER, "nvme/nvme0/nvme0n1", "259:0");
    host.add_disk(OTHER, "nvme/nvme0/nvme0n1/nvme0n1p1", "259:1");
    host.mount("self", "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n");
    assert_eq!(host.tells_how(), "nvme0n1, nvme0n1p1, not mounted; goes with the driver");
    let root = "21 1 259:1 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p1 rw\n";
    host.mount("self", &format!("{root}22 21 259:1 /srv /srv rw - ext4 /dev/nvme0n1p1 rw\n"));
    host.refuses("nvme0n1p1 is mounted at /, /srv");
    // In the mount namespace of another process.
    host.mount("self", "");
    host.mount("4711", root);
    host.refuses("nvme0n1p1 is mounted at /");
}

#[test]
fn swap_is_not_taken_away() {
    let host = MadeUp::with("swap", "ahci");
    host.add_disk(OTHER, "ata1/host0/target0:0:0/0:0:0:0/block/sda", "8:0");
    host.write("proc/swaps", b"Filename\tType\tSize\tUsed\tPriority\n/dev/sda partition 1 0 -2\n");
    host.refuses("sda is swap");
}

#[test]
fn what_disks_are_made_into_counts() {
    let host = MadeUp::with("holders", "nvme");
    host.add_disk(OTHER, "nvme/nvme0/nvme0n1", "259:0");
    host.add_disk(OTHER, "nvme/nvme0/nvme0n1/nvme0n1p2", "259:2");
    host.add_holder("md127", "9:127", &["nvme0n1p2"]);
    host.refuses("md127 is made of it");
    host.add_holder("dm-0", "254:0", &["md127"]);
    host.write("sys/class/block/dm-0/dm/name", b"vg-root\n");
    host.mount("1", "21 1 254:0 / / rw - ext4 /dev/mapper/vg-root rw\n");
    host.refuses("dm-0 is mounted at /");
    // File systems with device numbers of their own.
    host.mount("1", "21 1 0:23 /@ / rw - btrfs /dev/mapper/vg-root rw\n");
    host.refuses("dm-0 is mounted at /");
    host.mount("1", "21 1 0:23 / /data rw - bcachefs /dev/sdb:/dev/nvme0n1p2 rw\n");
    host.refuses("nvme0n1p2 is mounted at /data");
    host.mount("1", "");
    host.write("proc/swaps", b"Filename Type\n/dev/dm-0 partition\n");
    host.refuses("dm-0 is swap");
}

#[test]
fn partitions_of_what_disks_are_made_into_count() {
    let host = MadeUp::with("holder-partitions", "nvme");
    host.add_disk(OTHER, "nvme/nvme0/nvme0n1", "259:0");
    host.add_holder("md0", "9:0", &["nvme0n1"]);
    host.add_device("block", "md0p1", "sys/devices/virtual/block/md0/md0p1");
    host.write("sys/class/block/md0p1/dev", b"259:7\n");
    host.mount("self", "21 1 259:7 / /boot rw - vfat /dev/md0p1 rw\n");
    host.refuses("md0p1 is mounted at /boot");
}

#[test]
fn disks_that_file_systems_hide_are_not_taken_away() {
    let host = MadeUp::with("btrfs", "nvme");
    host.add_disk(OTHER, "nvme/nvme0/nvme0n1", "259:0");
    host.link("sys/fs/btrfs/0123/devices/nvme0n1", "sys/class/block/nvme0n1");
    host.refuses("part of a mounted btrfs");

    let host = MadeUp::with("zfs", "nvme");
    host.write("proc/spl/kstat/zfs/arcstats", b"");
    host.add_disk(OTHER, "nvme/nvme0/nvme0n1", "259:0");
    assert!(host.tells_how().contains("not mounted"), "ZFS without a pool");
    host.write("proc/spl/kstat/zfs/tank/state", b"ONLINE\n");
    host.refuses("tank");
}

#[test]
fn an_nvme_drive_with_several_controllers_is_found() {
    let host = MadeUp::with("multipath", "nvme");
    let controller = format!("sys/bus/pci/devices/{OTHER}/nvme/nvme0");
    let subsystem = "sys/devices/virtual/nvme-subsystem/nvme-subsys0";
    host.add_device("nvme-subsystem", "nvme-subsys0", subsystem);
    host.link(&format!("{subsystem}/nvme0"), &controller);
    host.add_device("block", "nvme0n1", &format!("{subsystem}/nvme0n1"));
    host.write("sys/class/block/nvme0n1/dev", b"259:0\n");
    host.mount("self", "21 1 259:0 / / rw - xfs /dev/nvme0n1 rw\n");
    host.refuses("nvme0n1 is mounted at /");
}

#[test]
fn the_network_is_not_taken_away() {
    const HEAD: &str = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n";
    let host = MadeUp::with("network", "igb");
    host.add_card(OTHER, "eth0", "up");
    host.refuses("eth0 is on the only network card that is up");
    host.add_interface("sys/devices/virtual", "br0", "up");
    host.refuses("eth0 is on the only network card that is up");
    host.add_card("0000:03:00.0", "eth1", "down");
    host.refuses("eth0 is on the only network card that is up");
    host.write("sys/class/net/eth1/operstate", b"unknown\n");
    host.write("sys/class/net/eth1/flags", b"0x1003\n");
    assert_eq!(host.tells_how(), "eth0, up; goes with the driver");
    host.write("sys/class/net/eth0/operstate", b"down\n");
    assert_eq!(host.tells_how(), "eth0, down; goes with the driver");

    let route = |line: &str| host.write("proc/net/route", format!("{HEAD}{line}\n").as_bytes());
    route("eth0 00000000 0102A8C0 0003 0 0 100 00000000 0 0 0");
    host.refuses("eth0 carries the default route");
    route("eth0 0002A8C0 00000000 0001 0 0 100 00FFFFFF 0 0 0");
    host.tells_how();
    route("eth0 00000000 00000000 0201 0 0 100 00000000 0 0 0");
    host.tells_how();
    route("br0 00000000 0102A8C0 0003 0 0 100 00000000 0 0 0");
    host.tells_how();
    host.link("sys/class/net/eth0/upper_bond0", "sys/devices/virtual/net/bond0");
    host.add_device("net", "bond0", "sys/devices/virtual/net/bond0");
    host.link("sys/class/net/bond0/upper_br0", "sys/devices/virtual/net/br0");
    host.refuses("eth0 carries the default route of br0");
    route("");
    let zero = "0".repeat(32);
    let line = format!(
        "{zero} 00 {zero} 00 fe800000000000000000000000000001 00000400 1 0 00000003 eth0\n"
    );
    host.write("proc/net/ipv6_route", line.as_bytes());
    host.refuses("eth0 carries the default route");
    let refuses = format!("{zero} 00 {zero} 00 {zero} ffffffff 1 0 00200200 lo\n");
    host.write("proc/net/ipv6_route", refuses.as_bytes());
    host.tells_how();
}

#[test]
fn virtual_functions_are_not_taken_away() {
    let host = MadeUp::with("virtual", "igb");
    host.link(&format!("sys/bus/pci/devices/{OTHER}/virtfn0"), "sys/bus/pci/devices/0000:02:10.0");
    host.refuses("1 virtual functions");
}

#[test]
fn what_else_is_on_a_function_is_named() {
    let host = MadeUp::with("children", "virtio-pci");
    let driver = format!("sys/bus/pci/devices/{OTHER}/virtio0/driver");
    host.link(&driver, "sys/bus/virtio/drivers/virtio_balloon");
    assert_eq!(host.tells_how(), "virtio0 (virtio_balloon); goes with the driver");
}

#[test]
fn of_many_mount_points_some_are_named() {
    let host = MadeUp::with("many", "nvme");
    host.add_disk(OTHER, "nvme/nvme0/nvme0n1", "259:0");
    let line = |n| format!("21 1 259:0 / /run/{n} rw - xfs /dev/nvme0n1 rw\n");
    let lines: String = (0..9).map(line).collect();
    host.mount("self", &format!("{lines}21 1 259:0 / / rw - xfs /dev/nvme0n1 rw\n"));
    host.refuses("nvme0n1 is mounted at /, /run/0, /run/1, /run/2 and 6 more");
}

#[test]
fn displays_are_named() {
    let host = MadeUp::with("display", "amdgpu");
    host.add_device("graphics", "fb0", &format!("sys/bus/pci/devices/{OTHER}/graphics/fb0"));
    assert_eq!(host.tells_how(), "fb0, a display; goes with the driver");
}

#[test]
fn ports_bridges_and_iommus_are_left_alone() {
    let host = MadeUp::with("port", "pcieport");
    let config = format!("sys/bus/pci/devices/{OTHER}/config");
    let usual = fs::read(host.0.join(&config)).unwrap();
    for (header, class, words) in [
        (0x81, [0x06, 0x04], "a port or a bridge"),
        (0x00, [0x06, 0x01], "a port or a bridge"),
        (0x00, [0x08, 0x06], "an IOMMU"),
    ] {
        let mut config_space = usual.clone();
        config_space[0x0e] = header;
        [config_space[0x0b], config_space[0x0a]] = class;
        host.write(&config, &config_space);
        let found = host.check(OTHER, "function");
        assert_eq!(found.problem, Some("host-function"));
        assert!(found.found.contains(words), "{}", found.found);
        assert!(found.remedy.unwrap().contains("leave it alone"));
        assert!(!text(&host.probe(&[OTHER]), false).contains("unbind"));
    }
}

#[test]
fn drivers_of_vfio_are_good_whatever_their_name() {
    for (driver, has_folder) in [
        ("vfio-pci", false),
        ("mlx5_vfio_pci", false),
        ("hisi-acc-vfio-pci", false),
        ("somebodys_own", true),
    ] {
        let host = MadeUp::with("variant", driver);
        if has_folder {
            host.write(&format!("sys/bus/pci/devices/{OTHER}/vfio-dev/vfio0/dev"), b"511:0\n");
        }
        let check = host.check(OTHER, "driver");
        assert!(check.ok && check.found.contains(driver), "{check:?}");
        assert!(check.remedy.is_none());
        assert!(check.undo.unwrap().contains("driver_override"), "how to give it back");
        assert!(host.problems(&[OTHER]).is_empty());
    }
    // Beside another function of the same group.
    let host = MadeUp::new("variant-group");
    host.add_function("0000:01:00.1", "mlx5_vfio_pci", "7");
    assert!(host.problems(&[DRIVE]).is_empty());
}

#[test]
fn neighbours_of_the_group_are_not_taken_away_either() {
    let host = MadeUp::new("neighbour");
    host.add_function("0000:01:00.1", "nvme", "7");
    let remedy = |host: &MadeUp| host.check(DRIVE, "IOMMU group").remedy.unwrap();
    assert!(remedy(&host).contains("unbind them"));
    host.add_disk("0000:01:00.1", "nvme/nvme0/nvme0n1", "259:0");
    host.mount("self", "21 1 259:0 / / rw - xfs /dev/nvme0n1 rw\n");
    let remedy = remedy(&host);
    assert!(!remedy.contains("unbind") && remedy.contains("nvme0n1 is mounted at /"), "{remedy}");
}

#[test]
fn names_cannot_command_the_terminal() {
    let host = MadeUp::with("terminal", "nvme");
    host.add_disk(OTHER, "nvme/nvme0/nvme0n1", "259:0");
    host.mount("self", "21 1 259:0 / /\x1b[2J rw - xfs /dev/nvme0n1 rw\n");
    let text = text(&host.probe(&[OTHER]), false);
    assert!(text.contains("/?[2J"), "{text}");
}
