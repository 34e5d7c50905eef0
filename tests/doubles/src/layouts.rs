//! Functions as vendors build them: where 31 of them keep vector table and pending bits, from public listings, and what each is on hosts with pages of 4K, 16K and 64K.
//!
//! The lists say what the functions claim in configuration space; a note says where a figure is assumed.

use std::fmt::Write as _;

use pvmsi_hypervisor::{BarIndex, Layout, LayoutError, NotMappable};

/// The page sizes of hosts, in the order of [`VendorLayout::serves`].
pub const PAGE_SIZES: [u64; 3] = [0x1000, 0x4000, 0x1_0000];

/// The MSI-X capability of [`VendorLayout::config_space`].
const MSIX: usize = 0x40;
/// Flags of `struct resource`, as sysfs prints them.
const IORESOURCE_IO: u64 = 0x100;
const IORESOURCE_MEM: u64 = 0x200;
const IORESOURCE_PREFETCH: u64 = 0x2000;
const IORESOURCE_MEM_64: u64 = 0x10_0000;

/// What a function is where each of its BARs has a page of the host for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serves {
    /// Its table can be direct.
    Direct,
    /// Its table stays trapped.
    Trapped(NotMappable),
    /// Nobody can serve it.
    Refused(LayoutError),
}

/// A function whose pending bits are said to lie where its table is.
const OVER_TABLE: Serves = Serves::Trapped(NotMappable::OverPendingBits);

/// A base address register.
#[derive(Clone, Copy, Debug)]
pub struct VendorBar {
    /// Its number.
    pub index: u8,
    /// Bytes.
    pub size: u64,
    /// The bits that say what it is.
    pub kind: u32,
}

/// 32-bit memory.
const fn memory(index: u8, size: u64) -> VendorBar {
    VendorBar { index, size, kind: 0 }
}

/// 64-bit memory.
const fn wide(index: u8, size: u64) -> VendorBar {
    VendorBar { index, size, kind: 0b100 }
}

/// Ports.
const fn io(index: u8) -> VendorBar {
    VendorBar { index, size: 0x20, kind: 1 }
}

impl VendorBar {
    const fn prefetchable(self) -> Self {
        Self { kind: self.kind | 0b1000, ..self }
    }

    const fn is_memory(self) -> bool {
        self.kind & 1 == 0
    }
}

/// A function.
#[derive(Clone, Copy, Debug)]
pub struct VendorLayout {
    /// Vendor and device.
    pub name: &'static str,
    /// Its BARs, as far as they have anything.
    pub bars: &'static [VendorBar],
    /// Entries of its table.
    pub vectors: u16,
    /// BAR and offset of the table.
    pub table: (u8, u32),
    /// BAR and offset of the pending bits.
    pub pending: (u8, u32),
    /// Where the figures are from.
    pub source: &'static str,
    /// What is special.
    pub notes: &'static str,
    /// What it is at each of [`PAGE_SIZES`].
    pub serves: [Serves; 3],
}

impl VendorLayout {
    /// The layout on a host with these pages. No BAR has a page of its own yet.
    ///
    /// # Errors
    /// Nobody can serve it.
    pub fn layout(&self, page_size: u64) -> Result<Layout, LayoutError> {
        let config = self.config_space([0; BarIndex::COUNT]);
        let read = |offset: u64| {
            let bytes = config.get(usize::try_from(offset).unwrap()..);
            bytes
                .and_then(|bytes| bytes.first_chunk())
                .map_or(0, |bytes| u32::from_le_bytes(*bytes))
        };
        let size = |bar: BarIndex| {
            let found = self.bars.iter().find(|found| found.index == bar.0);
            found.map_or(0, |found| found.size)
        };
        Layout::read(read, size, page_size)
    }

    /// Its configuration space with BARs at these addresses: nothing but BARs and MSI-X.
    pub fn config_space(&self, starts: [u64; BarIndex::COUNT]) -> [u8; 256] {
        let mut config = [0; 256];
        let mut put = |at: usize, word: u32| {
            config.iter_mut().skip(at).zip(word.to_le_bytes()).for_each(|(byte, new)| *byte = new);
        };
        for (bar, start) in self.in_order(starts) {
            let at = 0x10_usize.saturating_add(usize::from(bar.index).saturating_mul(4));
            let [low, high] = [start, start >> 32].map(|half| u32::try_from(half & 0xffff_ffff));
            put(at, low.unwrap() | bar.kind);
            if bar.kind & 0b100 != 0 {
                put(at.saturating_add(4), high.unwrap());
            }
        }
        put(0x34, u32::try_from(MSIX).unwrap());
        put(MSIX, u32::from(self.vectors.saturating_sub(1)) << 16 | 0x11);
        for (offset, (bar, start)) in [(4_usize, self.table), (8, self.pending)] {
            put(MSIX.saturating_add(offset), start | u32::from(bar));
        }
        config
    }

    /// The lines of `resource` in its folder in sysfs.
    pub fn resources(&self, starts: [u64; BarIndex::COUNT]) -> String {
        let mut text = String::new();
        for index in 0..BarIndex::COUNT {
            let found = self.in_order(starts).find(|(bar, _)| usize::from(bar.index) == index);
            let (start, end, flags) = found.map_or((0, 0, 0), |(bar, start)| {
                let flags = match (bar.is_memory(), bar.kind & 0b100, bar.kind & 0b1000) {
                    (false, ..) => IORESOURCE_IO,
                    (true, wide, prefetch) => {
                        let wide = if wide == 0 { 0 } else { IORESOURCE_MEM_64 };
                        let prefetch = if prefetch == 0 { 0 } else { IORESOURCE_PREFETCH };
                        IORESOURCE_MEM | wide | prefetch | u64::from(bar.kind)
                    }
                };
                (start, start.saturating_add(bar.size).saturating_sub(1), flags)
            });
            writeln!(text, "{start:#018x} {end:#018x} {flags:#018x}").unwrap();
        }
        text
    }

    fn in_order(
        &self,
        starts: [u64; BarIndex::COUNT],
    ) -> impl Iterator<Item = (VendorBar, u64)> + '_ {
        self.bars
            .iter()
            .map(move |bar| (*bar, starts.get(usize::from(bar.index)).copied().unwrap_or(0)))
    }

    /// Addresses for its BARs, where each starts a page of 64K.
    pub fn starts_apart(&self) -> [u64; BarIndex::COUNT] {
        self.starts(|_| 0)
    }

    /// Addresses for its BARs, where those that are smaller than a page, of whatever size, start none.
    pub fn starts_inside_pages(&self) -> [u64; BarIndex::COUNT] {
        self.starts(|size| if size < 0x1_0000 { size } else { 0 })
    }

    /// The BARs one after the other, each as far behind the start of a page of 64K as `behind` says of its size.
    fn starts(&self, behind: impl Fn(u64) -> u64) -> [u64; BarIndex::COUNT] {
        let mut starts = [0; BarIndex::COUNT];
        let mut next = 0x8000_0000_u64;
        for bar in self.bars {
            let room = bar.size.max(0x1_0000);
            next = next.next_multiple_of(room);
            if let Some(start) = starts.get_mut(usize::from(bar.index)) {
                *start = next.saturating_add(behind(bar.size));
            }
            next = next.saturating_add(room);
        }
        starts
    }
}

/// All of them.
pub const VENDOR_LAYOUTS: &[VendorLayout] = &[
    VendorLayout {
        name: "Samsung SM961/PM961 NVMe",
        bars: &[wide(0, 16 << 10)],
        vectors: 33,
        table: (0, 0x3000),
        pending: (0, 0x2000),
        source: "public notes on lspci",
        notes: "PBA page before table page",
        serves: [Serves::Direct; 3],
    },
    VendorLayout {
        name: "SanDisk/WD SN750/SN730 NVMe",
        bars: &[wide(0, 16 << 10), wide(4, 256)],
        vectors: 65,
        table: (0, 0x2000),
        pending: (4, 0),
        source: "Pi NVMe benchmark notes",
        notes: "PBA alone in a BAR of 256 bytes",
        serves: [Serves::Direct; 3],
    },
    VendorLayout {
        name: "SanDisk/WD Black SN770M NVMe",
        bars: &[wide(0, 16 << 10)],
        vectors: 65,
        table: (0, 0x3000),
        pending: (0, 0x2000),
        source: "forum lspci",
        notes: "PBA page before table page",
        serves: [Serves::Direct; 3],
    },
    VendorLayout {
        name: "SK hynix 1c5c:174a NVMe",
        bars: &[wide(0, 16 << 10), memory(2, 4 << 10), memory(3, 4 << 10)],
        vectors: 33,
        table: (0, 0x2000),
        pending: (0, 0x3000),
        source: "Pi NVMe benchmark notes",
        notes: "unused memory BARs 2 and 3",
        serves: [Serves::Direct; 3],
    },
    VendorLayout {
        name: "Intel Optane H10 (8086:0975; SM226x)",
        bars: &[wide(0, 16 << 10)],
        vectors: 16,
        table: (0, 0x2000),
        pending: (0, 0x2100),
        source: "Pi NVMe benchmark notes",
        notes: "PBA directly behind the table; No_Soft_Reset clear",
        serves: [Serves::Direct; 3],
    },
    VendorLayout {
        name: "Silicon Motion SM2262 (state seen after a reset)",
        bars: &[wide(0, 16 << 10)],
        vectors: 22,
        table: (0, 0x2000),
        pending: (0, 0x2100),
        source: "kernel bugzilla 202055; count from test script; offsets of the family",
        notes: "claimed table runs over the PBA",
        serves: [OVER_TABLE; 3],
    },
    VendorLayout {
        name: "Intel NVMe DC SSD 8086:0b60",
        bars: &[wide(0, 16 << 10)],
        vectors: 136,
        table: (0, 0x2000),
        pending: (0, 0x3000),
        source: "cloud-hypervisor PR 7939 (2026-03-31)",
        notes: "aarch64 host with 64K pages",
        serves: [Serves::Direct; 3],
    },
    VendorLayout {
        name: "Intel E810-C PF",
        bars: &[wide(0, 32 << 20).prefetchable(), wide(3, 64 << 10).prefetchable()],
        vectors: 1024,
        table: (3, 0),
        pending: (3, 0x8000),
        source: "lspci -vv",
        notes: "two 64-bit BARs at 0 and 3",
        serves: [Serves::Direct; 3],
    },
    VendorLayout {
        name: "Intel 82599/X520-2",
        bars: &[wide(0, 512 << 10).prefetchable(), io(2), wide(4, 16 << 10).prefetchable()],
        vectors: 64,
        table: (4, 0),
        pending: (4, 0x2000),
        source: "lspci",
        notes: "I/O BAR between memory BARs",
        serves: [Serves::Direct; 3],
    },
    VendorLayout {
        name: "Intel I211",
        bars: &[memory(0, 128 << 10), io(2), memory(3, 16 << 10)],
        vectors: 5,
        table: (3, 0),
        pending: (3, 0x2000),
        source: "mail with lspci",
        notes: "",
        serves: [Serves::Direct; 3],
    },
    VendorLayout {
        name: "Intel 82574L (e1000e)",
        bars: &[memory(3, 16 << 10)],
        vectors: 5,
        table: (3, 0),
        pending: (3, 0x2000),
        source: "mail with lspci",
        notes: "FLReset-; only BAR 3 size assumed from family",
        serves: [Serves::Direct; 3],
    },
    VendorLayout {
        name: "Intel JHL6240 Thunderbolt NHI",
        bars: &[memory(0, 256 << 10), memory(1, 4 << 10)],
        vectors: 16,
        table: (1, 0),
        pending: (1, 0xfa0),
        source: "lspci -vv",
        notes: "PBA near the end of the table's page; FLReset-",
        serves: [Serves::Direct; 3],
    },
    VendorLayout {
        name: "Mellanox ConnectX-3 VF",
        bars: &[wide(2, 8 << 20).prefetchable()],
        vectors: 24,
        table: (2, 0x2000),
        pending: (2, 0x3000),
        source: "Hyper-V backport notes",
        notes: "VF: only BAR 2; table beside doorbell BAR start; No_Soft_Reset clear",
        serves: [Serves::Direct; 3],
    },
    VendorLayout {
        name: "Broadcom BCM57781",
        bars: &[wide(0, 64 << 10).prefetchable(), wide(2, 64 << 10).prefetchable()],
        vectors: 5,
        table: (2, 0),
        pending: (2, 0x120),
        source: "forum lspci",
        notes: "table and PBA in one page",
        serves: [Serves::Direct; 3],
    },
    VendorLayout {
        name: "LSI/Broadcom MegaRAID SAS-3 3108",
        bars: &[io(0), wide(1, 64 << 10), wide(3, 1 << 20)],
        vectors: 97,
        table: (1, 0xe000),
        pending: (1, 0xf000),
        source: "RAID notes with lspci",
        notes: "64-bit BARs at odd indices 1 and 3",
        serves: [Serves::Direct; 3],
    },
    VendorLayout {
        name: "Realtek RTL8168 (rev 06)",
        bars: &[io(0), wide(2, 4 << 10), wide(4, 16 << 10).prefetchable()],
        vectors: 4,
        table: (4, 0),
        pending: (4, 0x800),
        source: "kvmtool patch; acrn issue 1222 (2018-09-12)",
        notes: "64K host in the report",
        serves: [Serves::Direct; 3],
    },
    VendorLayout {
        name: "Renesas uPD720201 xHCI",
        bars: &[wide(0, 8 << 10)],
        vectors: 8,
        table: (0, 0x1000),
        pending: (0, 0x1080),
        source: "mail with lspci",
        notes: "FLReset-",
        serves: [Serves::Direct; 3],
    },
    VendorLayout {
        name: "AMD Lucienne/Renoir GPU",
        bars: &[
            wide(0, 256 << 20).prefetchable(),
            wide(2, 2 << 20).prefetchable(),
            memory(5, 512 << 10),
        ],
        vectors: 4,
        table: (5, 0x4_2000),
        pending: (5, 0x4_3000),
        source: "kernel bugzilla 216242 (2022-07)",
        notes: "BAR sizes from another dump of the family and BAR 5 assumed",
        serves: [Serves::Direct; 3],
    },
    VendorLayout {
        name: "AMD Sensor Fusion Hub MP2",
        bars: &[memory(5, 8 << 10)],
        vectors: 2,
        table: (5, 0),
        pending: (5, 0x1000),
        source: "lspci",
        notes: "FLReset-; BAR size assumed",
        serves: [Serves::Direct; 3],
    },
    VendorLayout {
        name: "NVIDIA T4 / L20 GPU",
        bars: &[
            memory(0, 16 << 20),
            wide(1, 256 << 20).prefetchable(),
            wide(3, 32 << 20).prefetchable(),
        ],
        vectors: 6,
        table: (0, 0xb9_0000),
        pending: (0, 0xba_0000),
        source: "cloud-hypervisor issue 434 (2019-11-20); passthrough notes",
        notes: "",
        serves: [Serves::Direct; 3],
    },
    VendorLayout {
        name: "NVIDIA L20 GPU with BAR 0 not assigned by the host",
        bars: &[wide(3, 32 << 20).prefetchable()],
        vectors: 6,
        table: (0, 0xb9_0000),
        pending: (0, 0xba_0000),
        source: "passthrough notes",
        notes: "the table's BAR does not exist",
        serves: [Serves::Refused(LayoutError::NotAssigned(BarIndex(0))); 3],
    },
    VendorLayout {
        name: "Microchip LAN7430",
        bars: &[wide(0, 8 << 10), wide(2, 256), wide(4, 256)],
        vectors: 8,
        table: (2, 0),
        pending: (4, 0),
        source: "mail with lspci and dmesg of a 6.19-rc1 host",
        notes: "table and PBA BARs share one host page",
        serves: [Serves::Direct; 3],
    },
    VendorLayout {
        name: "Rockchip RK3588 in endpoint mode",
        bars: &[
            memory(0, 64 << 10),
            memory(1, 512),
            memory(2, 1 << 10),
            memory(3, 16 << 10),
            memory(4, 128 << 10),
            memory(5, 1 << 20),
        ],
        vectors: 2048,
        table: (0, 0x80),
        pending: (0, 0x8080),
        source: "mail with lspci",
        notes: "table at 0x80 beside registers; several small BARs",
        serves: [Serves::Direct; 3],
    },
    VendorLayout {
        name: "DesignWare endpoint with miscalculated PBA (example of 32 vectors)",
        bars: &[memory(0, 64 << 10)],
        vectors: 32,
        table: (0, 0x80),
        pending: (0, 0x270),
        source: "linux commit 810276362bad (2025-05-14)",
        notes: "PBA offset one entry short: overlaps the last entry",
        serves: [OVER_TABLE; 3],
    },
    VendorLayout {
        name: "VMware VMXNET3",
        bars: &[memory(0, 4 << 10), memory(1, 4 << 10), memory(2, 8 << 10)],
        vectors: 25,
        table: (2, 0),
        pending: (2, 0x1000),
        source: "lspci",
        notes: "",
        serves: [Serves::Direct; 3],
    },
    VendorLayout {
        name: "unnamed DPU virtio-blk PF 1af4:1001",
        bars: &[
            memory(0, 8 << 10).prefetchable(),
            memory(1, 4 << 10),
            memory(2, 32 << 10).prefetchable(),
            memory(3, 64 << 10),
            wide(4, 4 << 20).prefetchable(),
        ],
        vectors: 2,
        table: (2, 0),
        pending: (2, 0x4000),
        source: "blog with lspci and hexdump",
        notes: "",
        serves: [Serves::Direct; 3],
    },
    VendorLayout {
        name: "google/alioth virtio function (emulated)",
        bars: &[wide(0, 4 << 10)],
        vectors: 2,
        table: (0, 0x58),
        pending: (0, 0x78),
        source: "pciutils commit 1bfc2be0ce96",
        notes: "table aligned to 8 only; notify register in the same page",
        serves: [Serves::Direct; 3],
    },
    VendorLayout {
        name: "Xilinx CCIX demo function 19ec:0003",
        bars: &[wide(0, 64 << 20), wide(2, 64 << 20), wide(4, 4 << 30).prefetchable()],
        vectors: 32,
        table: (3, 0),
        pending: (2, 0x8fe0),
        source: "mail on lspci support of CCIX",
        notes: "BIR names the upper half of a 64-bit BAR; sizes not shown: assumed",
        serves: [Serves::Refused(LayoutError::NoSuchBar(BarIndex(3))); 3],
    },
    VendorLayout {
        name: "Atheros AR5008 / AR928x Wi-Fi",
        bars: &[wide(0, 64 << 10)],
        vectors: 1,
        table: (0, 0),
        pending: (0, 0),
        source: "forum lspci",
        notes: "table and PBA at the same offset; FLReset-",
        serves: [OVER_TABLE; 3],
    },
    VendorLayout {
        name: "AMD FCH SATA 1022:7901 (EPYC)",
        bars: &[memory(5, 2 << 10)],
        vectors: 8,
        table: (5, 0),
        pending: (5, 0x1000),
        source: "passthrough notes; BAR size from dmesg",
        notes: "PBA outside its BAR: exact offsets not public; assumed",
        serves: [Serves::Direct; 3],
    },
    VendorLayout {
        name: "Baidu Kunlun VF",
        bars: &[wide(0, 64 << 10)],
        vectors: 8,
        table: (0, 0xb000),
        pending: (0, 0x46_0000),
        source: "QEMU mail 2021",
        notes: "PBA outside its BAR; count and table offset assumed",
        serves: [Serves::Direct; 3],
    },
];
