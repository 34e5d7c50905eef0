//! What of this host stands on a function: file systems, swap, the network, virtual functions.
//!
//! Everything is told by sysfs and procfs; nothing is opened or claimed. What other
//! network namespaces have of a function, and which process has opened a disk as such, stays unseen.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use pvmsi_hypervisor::HostPaths;

/// Mount points that are named; containers have a disk mounted in hundreds of places.
const SHOWN: usize = 4;
/// `struct rtentry` flags: the route is usable, and it is one that refuses.
const RTF_UP: u32 = 0x1;
const RTF_REJECT: u32 = 0x200;
/// `net_device` flags: switched on.
const IFF_UP: u32 = 0x1;

/// What uses a function.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Uses {
    /// What the host cannot be expected to survive the loss of.
    pub(super) vital: Vec<String>,
    /// What is there, and goes with the driver.
    pub(super) others: Vec<String>,
}

/// What uses the function with this folder in sysfs.
pub(super) fn of(paths: &HostPaths, folder: &Path) -> Uses {
    let mut uses = Uses::default();
    let Ok(function) = fs::canonicalize(folder) else { return uses };
    let class = Class::new(&paths.sysfs);
    disks(paths, &class, &function, &mut uses);
    network(paths, &class, &function, &mut uses);
    let virtual_functions = entries(&function).filter(|name| name.starts_with("virtfn")).count();
    if virtual_functions > 0 {
        uses.vital
            .push(format!("{virtual_functions} virtual functions are its own and go with it"));
    }
    uses.others.extend(
        class.below("graphics", &function).into_iter().map(|name| format!("{name}, a display")),
    );
    if uses == Uses::default() {
        uses.others.extend(children(&function));
    }
    uses
}

/// The first few of many; the root comes first.
fn some(names: BTreeSet<&str>) -> String {
    let rest = names.len().saturating_sub(SHOWN);
    let shown: Vec<&str> = names.into_iter().take(SHOWN).collect();
    match rest {
        0 => shown.join(", "),
        _ => format!("{} and {rest} more", shown.join(", ")),
    }
}

/// The names in a folder.
fn entries(folder: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
}

/// The devices that a function is the bus of, with their drivers.
fn children(function: &Path) -> Vec<String> {
    let child = |name: String| {
        let driver = fs::read_link(function.join(&name).join("driver")).ok()?;
        Some(format!("{name} ({})", driver.file_name()?.to_string_lossy()))
    };
    let mut children: Vec<String> = entries(function).filter_map(child).collect();
    children.sort();
    children
}

/// The folder `class` of sysfs.
struct Class(PathBuf);

impl Class {
    fn new(sysfs: &Path) -> Self {
        Self(sysfs.join("class"))
    }

    fn folder(&self, class: &str, name: &str) -> PathBuf {
        self.0.join(class).join(name)
    }

    /// The devices of a class that are below another device, by the resolved path of that.
    fn below(&self, class: &str, parent: &Path) -> BTreeSet<String> {
        let is_below = |name: &String| {
            fs::canonicalize(self.folder(class, name))
                .is_ok_and(|path| path != parent && path.starts_with(parent))
        };
        entries(&self.0.join(class)).filter(is_below).collect()
    }

    fn read(&self, class: &str, name: &str, file: &str) -> String {
        let content = fs::read_to_string(self.folder(class, name).join(file));
        content.unwrap_or_default().trim().to_owned()
    }
}

fn disks(paths: &HostPaths, class: &Class, function: &Path, uses: &mut Uses) {
    let own = own_disks(class, function);
    let all = with_holders(class, &own);
    let mounts = mounts(&paths.procfs);
    let swaps = swaps(&paths.procfs);
    let before = uses.vital.len();
    for block in &all {
        let nodes = nodes(class, block);
        let number = class.read("block", block, "dev");
        let points: BTreeSet<&str> = mounts
            .iter()
            .filter(|mount| {
                mount.number == number || mount.sources.iter().any(|source| nodes.contains(source))
            })
            .map(|mount| mount.point.as_str())
            .collect();
        if !points.is_empty() {
            uses.vital.push(format!("{block} is mounted at {}", some(points)));
        } else if in_btrfs(&paths.sysfs, block) {
            uses.vital.push(format!("{block} is part of a mounted btrfs"));
        }
        if swaps.iter().any(|swap| nodes.contains(swap)) {
            uses.vital.push(format!("{block} is swap"));
        }
    }
    let holders: Vec<&str> = all.difference(&own).map(String::as_str).collect();
    if uses.vital.len() == before && !holders.is_empty() {
        uses.vital.push(format!("{} is made of it", holders.join(", ")));
    }
    let pools: Vec<String> =
        entries(&paths.procfs.join("spl/kstat/zfs")).filter(|pool| is_pool(paths, pool)).collect();
    if uses.vital.len() == before && !own.is_empty() && !pools.is_empty() {
        uses.vital.push(format!(
            "it has disks, and the ZFS pools {} of this host may be on them (`zpool status` says where they are)",
            pools.join(", ")
        ));
    }
    if uses.vital.len() == before && !own.is_empty() {
        let own: Vec<&str> = own.iter().map(String::as_str).collect();
        uses.others.push(format!("{}, not mounted", own.join(", ")));
    }
}

/// Beside the pools ZFS has files there.
fn is_pool(paths: &HostPaths, name: &str) -> bool {
    paths.procfs.join("spl/kstat/zfs").join(name).is_dir()
}

/// The disks of a function with their partitions. Those that NVMe reaches by several controllers (multipath) belong to the subsystem, which names its controllers.
fn own_disks(class: &Class, function: &Path) -> BTreeSet<String> {
    let mut own = class.below("block", function);
    for subsystem in entries(&class.0.join("nvme-subsystem")) {
        let Ok(subsystem) = fs::canonicalize(class.folder("nvme-subsystem", &subsystem)) else {
            continue;
        };
        let is_controller = |name: String| {
            fs::canonicalize(subsystem.join(name)).is_ok_and(|path| path.starts_with(function))
        };
        if entries(&subsystem).any(is_controller) {
            own.extend(class.below("block", &subsystem));
        }
    }
    own
}

/// These disks and what is made of them: device mapper, MD, bcache, with partitions.
fn with_holders(class: &Class, own: &BTreeSet<String>) -> BTreeSet<String> {
    let mut all = own.clone();
    let mut rest: Vec<String> = own.iter().cloned().collect();
    while let Some(block) = rest.pop() {
        let folder = class.folder("block", &block);
        let partitions = fs::canonicalize(&folder).map(|path| class.below("block", &path));
        let more = entries(&folder.join("holders")).chain(partitions.into_iter().flatten());
        for block in more {
            if all.insert(block.clone()) {
                rest.push(block);
            }
        }
    }
    all
}

/// The device nodes of a block device, as mounts and swap name them. In sysfs `!` stands for `/`.
fn nodes(class: &Class, block: &str) -> Vec<String> {
    let mut nodes = vec![format!("/dev/{}", block.replace('!', "/"))];
    let mapped = class.read("block", block, "dm/name");
    if !mapped.is_empty() {
        nodes.push(format!("/dev/mapper/{mapped}"));
    }
    nodes
}

fn in_btrfs(sysfs: &Path, block: &str) -> bool {
    let all = sysfs.join("fs/btrfs");
    entries(&all).any(|id| all.join(id).join("devices").join(block).symlink_metadata().is_ok())
}

/// A line of `mountinfo`.
struct Mount {
    number: String,
    point: String,
    /// Some file systems name several, with colons between.
    sources: Vec<String>,
}

/// What is mounted in any mount namespace that can be seen.
fn mounts(procfs: &Path) -> Vec<Mount> {
    // One process stands for its namespace.
    let mut namespaces = BTreeMap::new();
    for process in entries(procfs) {
        let is_process = process == "self" || process.bytes().all(|byte| byte.is_ascii_digit());
        let folder = procfs.join(&process);
        if is_process {
            let namespace = fs::read_link(folder.join("ns/mnt")).unwrap_or_else(|_| folder.clone());
            namespaces.entry(namespace).or_insert(folder);
        }
    }
    let texts = namespaces.into_values().map(|folder| folder.join("mountinfo"));
    texts
        .filter_map(|file| fs::read_to_string(file).ok())
        .flat_map(|text| text.lines().filter_map(mount).collect::<Vec<_>>())
        .collect()
}

/// `36 35 98:0 /root /mount/point options optional - type source options`; see `proc_pid_mountinfo(5)`.
fn mount(line: &str) -> Option<Mount> {
    let (front, back) = line.split_once(" - ")?;
    let mut front = front.split(' ').skip(2);
    let (number, point) = (front.next()?.to_owned(), front.nth(1)?.to_owned());
    let sources = back.split(' ').nth(1)?.split(':').map(str::to_owned).collect();
    Some(Mount { number, point, sources })
}

fn swaps(procfs: &Path) -> Vec<String> {
    let swaps = fs::read_to_string(procfs.join("swaps")).unwrap_or_default();
    swaps
        .lines()
        .skip(1)
        .filter_map(|line| Some(line.split_whitespace().next()?.to_owned()))
        .collect()
}

fn network(paths: &HostPaths, class: &Class, function: &Path, uses: &mut Uses) {
    let own = class.below("net", function);
    let defaults = default_interfaces(&paths.procfs);
    let others_are_up = entries(&class.0.join("net"))
        .filter(|name| !own.contains(name) && class.folder("net", name).join("device").exists())
        .any(|name| is_up(class, &name));
    for interface in &own {
        let up = is_up(class, interface);
        let route = with_uppers(class, interface).into_iter().find(|name| defaults.contains(name));
        match route {
            Some(upper) if upper == *interface => {
                uses.vital.push(format!("{interface} carries the default route"));
            }
            Some(upper) => {
                uses.vital.push(format!("{interface} carries the default route of {upper}"))
            }
            None if up && !others_are_up => {
                uses.vital.push(format!("{interface} is on the only network card that is up"));
            }
            None => uses.others.push(format!("{interface}, {}", if up { "up" } else { "down" })),
        }
    }
}

/// An interface and what is made of it: bonds, bridges, VLANs.
fn with_uppers(class: &Class, interface: &str) -> BTreeSet<String> {
    let mut all = BTreeSet::from([interface.to_owned()]);
    let mut rest = vec![interface.to_owned()];
    while let Some(name) = rest.pop() {
        for entry in entries(&class.folder("net", &name)) {
            let Some(upper) = entry.strip_prefix("upper_") else { continue };
            if all.insert(upper.to_owned()) {
                rest.push(upper.to_owned());
            }
        }
    }
    all
}

fn is_up(class: &Class, interface: &str) -> bool {
    match class.read("net", interface, "operstate").as_str() {
        "up" => true,
        // Drivers that do not tell.
        "unknown" => {
            let flags = class.read("net", interface, "flags");
            let flags = u32::from_str_radix(flags.trim_start_matches("0x"), 16);
            flags.is_ok_and(|flags| flags & IFF_UP != 0)
        }
        _ => false,
    }
}

/// The interfaces that lead everywhere, by IPv4 or IPv6.
fn default_interfaces(procfs: &Path) -> BTreeSet<String> {
    let read = |file: &str| fs::read_to_string(procfs.join("net").join(file)).unwrap_or_default();
    let leads = |flags: &str| {
        u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & (RTF_UP | RTF_REJECT) == RTF_UP)
    };
    let is_zero = |word: &str| word.bytes().all(|byte| byte == b'0');
    let mut interfaces = BTreeSet::new();
    for line in read("route").lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [interface, destination, _, flags, _, _, _, mask, ..] = words.as_slice()
            && is_zero(destination)
            && is_zero(mask)
            && leads(flags)
        {
            interfaces.insert((*interface).to_owned());
        }
    }
    for line in read("ipv6_route").lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [destination, length, .., flags, interface] = words.as_slice()
            && is_zero(destination)
            && is_zero(length)
            && leads(flags)
        {
            interfaces.insert((*interface).to_owned());
        }
    }
    interfaces
}
