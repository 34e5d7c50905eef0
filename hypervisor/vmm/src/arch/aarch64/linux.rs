//! Linux for arm64: the forms in which its kernel comes, and where kernel and initial RAM file system go.
//!
//! | guest physical | what |
//! |---|---|
//! | RAM's start | device tree |
//! | 2 MiB behind it | kernel: `text_offset` bytes further, `image_size` bytes |
//! | behind the kernel | initial RAM file system |
//!
//! Kernels are to lie at a base of 2 MiB alignment, and those with `text_offset` 0 start right
//! there: so the device tree has the 2 MiB before to itself.
//!
//! Sources: Linux `Documentation/arch/arm64/booting.rst`; for EFI zboot
//! `drivers/firmware/efi/libstub/zboot-header.S`.

use std::borrow::Cow;
use std::io::{Cursor, Read};
use std::ops::Range;

use flate2::read::GzDecoder;
use linux_loader::loader::KernelLoader;
use linux_loader::loader::pe::{PE, arm64_image_header};
use ruzstd::decoding::StreamingDecoder;
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap};

use super::contract::{LOAD_MIN, RAM_START};
use super::registers::Granule;
use super::{Start, device_tree};
use crate::boot::Boot;
use crate::error::MachineError;

/// "ARM\x64", little endian.
const IMAGE_MAGIC: u32 = 0x644d_5241;
/// The initial RAM file system starts at a page of the largest size.
const INITRD_ALIGNMENT: u64 = 0x1_0000;
/// The window of `zstd --ultra -22`, which the kernel's makefiles use.
const ZSTD_WINDOW_MAX: u64 = 128 << 20;

/// Loads a kernel, its initial RAM file system, and the device tree at the start of RAM.
///
/// # Errors
/// When it is no kernel for this machine, or something does not fit.
pub(crate) fn load(
    boot: &Boot<'_>,
    kernel: &[u8],
    initrd: Option<&[u8]>,
) -> Result<Start, MachineError> {
    let kernel = Kernel::read(kernel, boot.memory_bytes)?;
    let loaded = kernel.load(boot.memory, boot.memory_bytes, initrd)?;
    device_tree::write(boot, loaded.initrd)?;
    Ok(Start { entry: loaded.entry, device_tree: RAM_START, granule: kernel.granule })
}

/// A Linux kernel, decompressed.
struct Kernel<'a> {
    image: Cow<'a, [u8]>,
    text_offset: u64,
    /// From its start, the memory that it has behind the file's end included.
    bytes: u64,
    granule: Option<Granule>,
}

/// Where a kernel and its initial RAM file system lie.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Loaded {
    /// Where the boot processor starts.
    entry: u64,
    initrd: Option<Range<u64>>,
}

impl<'a> Kernel<'a> {
    /// Reads a kernel in any of its forms: Image, compressed or not, or EFI zboot.
    ///
    /// # Errors
    /// When it is no kernel for this machine, or, decompressed, larger than the RAM.
    fn read(file: &'a [u8], memory_bytes: u64) -> Result<Self, MachineError> {
        let image = decompress(file, memory_bytes)?;
        let Some(header) = image_header(&image) else { return Err(wrong(what_else(&image))) };
        let bytes = u64::from_le(header.image_size);
        if bytes == 0 {
            return Err(wrong(
                "the kernel does not say how much memory it takes, as those before Linux 3.17; take a newer one"
                    .to_owned(),
            ));
        }
        let granule = match u64::from_le(header.flags) >> 1 & 3 {
            1 => Some(Granule::K4),
            2 => Some(Granule::K16),
            3 => Some(Granule::K64),
            _ => None,
        };
        let file_bytes = u64::try_from(image.len()).unwrap_or(u64::MAX);
        let text_offset = u64::from_le(header.text_offset);
        Ok(Self { image, text_offset, bytes: bytes.max(file_bytes), granule })
    }

    /// Copies kernel and initial RAM file system into the RAM.
    ///
    /// # Errors
    /// When they do not fit.
    fn load(
        &self,
        memory: &GuestMemoryMmap,
        memory_bytes: u64,
        initrd: Option<&[u8]>,
    ) -> Result<Loaded, MachineError> {
        let initrd_bytes =
            initrd.map_or(0, |initrd| u64::try_from(initrd.len()).unwrap_or(u64::MAX));
        let places = || {
            let entry = LOAD_MIN.checked_add(self.text_offset)?;
            let initrd =
                entry.checked_add(self.bytes)?.checked_next_multiple_of(INITRD_ALIGNMENT)?;
            Some((entry, initrd, initrd.checked_add(initrd_bytes)?))
        };
        let ram_end = RAM_START.saturating_add(memory_bytes);
        let (entry, initrd_start, end) =
            places().filter(|(_, _, end)| *end <= ram_end).ok_or_else(|| {
                let end = places().map_or(u64::MAX, |(_, _, end)| end);
                MachineError::Config(format!(
                    "the guest has too little memory: kernel and initial RAM file system take {} MiB before anything \
                     runs, and there are {}; --memory gives it more",
                    end.saturating_sub(RAM_START).div_ceil(1 << 20),
                    memory_bytes >> 20
                ))
            })?;
        PE::load(memory, Some(GuestAddress(LOAD_MIN)), &mut Cursor::new(&self.image), None)
            .map_err(|error| wrong(format!("the kernel: {error}")))?;
        if let Some(initrd) = initrd {
            memory.write_slice(initrd, GuestAddress(initrd_start)).map_err(|error| {
                MachineError::Memory(format!("the initial RAM file system: {error}"))
            })?;
        }
        Ok(Loaded { entry, initrd: initrd.map(|_| initrd_start..end) })
    }
}

fn wrong(why: String) -> MachineError {
    MachineError::Guest(why)
}

/// The header of a kernel that is not compressed.
fn image_header(image: &[u8]) -> Option<arm64_image_header> {
    let mut header = arm64_image_header::default();
    Cursor::new(image).read_exact(header.as_mut_slice()).ok()?;
    (u32::from_le(header.magic) == IMAGE_MAGIC).then_some(header)
}

/// The kernel without what it is packed in.
fn decompress(file: &[u8], limit: u64) -> Result<Cow<'_, [u8]>, MachineError> {
    let zboot = zboot_payload(file)?;
    let packed = zboot.unwrap_or(file);
    let result = if packed.starts_with(GZIP) {
        unpacked(GzDecoder::new(packed), limit)
    } else if packed.starts_with(ZSTD) {
        StreamingDecoder::new_with_max_window_size(packed, ZSTD_WINDOW_MAX)
            .map_err(|error| error.to_string())
            .and_then(|decoder| unpacked(decoder, limit))
    } else if zboot.is_some() {
        Err("its payload does not start as gzip and zstd do".to_owned())
    } else {
        return Ok(Cow::Borrowed(file));
    };
    result.map(Cow::Owned).map_err(|why| wrong(format!("the kernel cannot be decompressed: {why}")))
}

const GZIP: &[u8] = b"\x1f\x8b";
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";

fn unpacked(packed: impl Read, limit: u64) -> Result<Vec<u8>, String> {
    let mut image = Vec::new();
    packed
        .take(limit.saturating_add(1))
        .read_to_end(&mut image)
        .map_err(|error| format!("the file is damaged or cut off: {error}"))?;
    if u64::try_from(image.len()).is_ok_and(|bytes| bytes <= limit) {
        Ok(image)
    } else {
        Err(format!(
            "it is larger than the guest's memory of {} MiB; --memory gives it more",
            limit >> 20
        ))
    }
}

/// What an EFI program that unpacks a kernel carries; `None` when it is none.
///
/// # Errors
/// When it is compressed as nothing here reads, or cut off.
fn zboot_payload(file: &[u8]) -> Result<Option<&[u8]>, MachineError> {
    if !file.starts_with(b"MZ") || file.get(4..8) != Some(b"zimg") {
        return Ok(None);
    }
    let number = |at: usize| -> Option<usize> {
        let bytes = file.get(at..at.checked_add(4)?)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let payload = || {
        let start = number(8)?;
        let payload = file.get(start..start.checked_add(number(12)?)?)?;
        let kind = file.get(24..56)?;
        let kind = kind.split(|&byte| byte == 0).next().unwrap_or(kind);
        Some((payload, String::from_utf8_lossy(kind)))
    };
    let (payload, kind) = payload()
        .ok_or_else(|| wrong("the kernel is an EFI zboot image that is cut off".to_owned()))?;
    match kind.as_ref() {
        "gzip" | "zstd" | "zstd22" => Ok(Some(payload)),
        other => Err(wrong(format!(
            "the kernel is an EFI zboot image, compressed with '{other}'; gzip and zstd can be read: take the Image \
             that it was made from"
        ))),
    }
}

/// What a file is that is no kernel for this machine, and what to do.
fn what_else(file: &[u8]) -> String {
    let compressions: [(&[u8], &str); 7] = [
        (b"\xfd7zXZ\0", "xz"),
        (b"BZh", "bzip2"),
        (b"\x02\x21\x4c\x18", "lz4"),
        (b"\x04\x22\x4d\x18", "lz4"),
        (b"\x5d\0\0", "lzma"),
        (b"\x89LZO", "lzo"),
        (GZIP, "gzip, twice"),
    ];
    let compression = compressions.iter().find(|(magic, _)| file.starts_with(magic));
    if let Some((_, name)) = compression {
        return format!(
            "it is no kernel, or is compressed with {name}; gzip and zstd can be read: decompress it first"
        );
    }
    let what = if file.get(0x202..0x206) == Some(b"HdrS") {
        "it is a bzImage, a kernel for x86"
    } else if file.starts_with(b"\x7fELF") {
        "it is an ELF program: of a kernel, take arch/arm64/boot/Image; a bare-metal guest is run without --kernel"
    } else {
        "it is no Linux kernel"
    };
    format!(
        "{what}; --kernel takes one for arm64: an Image, plain or compressed with gzip or zstd, or an EFI zboot image \
         (vmlinuz of a distribution is one of them)"
    )
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::super::programs;
    use super::*;

    const RAM: u64 = 16 << 20;

    fn image(text_offset: u64, image_size: u64, flags: u64) -> Vec<u8> {
        programs::image([text_offset, image_size, flags], b"code")
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        compress_to_vec(bytes, CompressionLevel::Fastest)
    }

    fn zboot(kind: &str, payload: &[u8]) -> Vec<u8> {
        let mut file = b"MZ\0\0zimg".to_vec();
        file.extend(0x100_u32.to_le_bytes());
        file.extend(u32::try_from(payload.len()).unwrap().to_le_bytes());
        file.extend([0; 8]);
        file.extend(kind.as_bytes());
        file.resize(0x100, 0);
        file.extend(payload);
        // The size that some compressions lack follows.
        file.extend([0; 4]);
        file
    }

    fn error(file: &[u8]) -> String {
        match Kernel::read(file, RAM) {
            Ok(_) => panic!("taken for a kernel"),
            Err(error) => {
                assert!(error.is_usage());
                error.to_string()
            }
        }
    }

    #[test]
    fn every_form_of_a_kernel_is_the_same_kernel() {
        let plain = image(0, 0x20_0000, 0xa);
        for file in [
            plain.clone(),
            gzip(&plain),
            zstd(&plain),
            zboot("gzip", &gzip(&plain)),
            zboot("zstd", &zstd(&plain)),
        ] {
            let kernel = Kernel::read(&file, RAM).unwrap();
            assert_eq!(*kernel.image, plain);
            assert_eq!((kernel.text_offset, kernel.bytes), (0, 0x20_0000));
            assert_eq!(kernel.granule, Some(Granule::K4));
        }
        let granule = |flags| Kernel::read(&image(0, 0x1000, flags), RAM).unwrap().granule;
        assert_eq!(
            [granule(4), granule(6), granule(0)],
            [Some(Granule::K16), Some(Granule::K64), None]
        );
    }

    #[test]
    fn kernel_and_initrd_lie_where_the_protocol_of_booting_wants_them() {
        let memory = crate::memory::create(RAM).unwrap();
        let file = image(0x8_0000, 0x12_3456, 0);
        let kernel = Kernel::read(&file, RAM).unwrap();
        let loaded = kernel.load(&memory, RAM, Some(b"files")).unwrap();
        assert_eq!(loaded.entry, LOAD_MIN + 0x8_0000);
        let initrd = loaded.initrd.unwrap();
        assert_eq!(initrd, LOAD_MIN + 0x1b_0000..LOAD_MIN + 0x1b_0005);
        let mut bytes = vec![0; file.len()];
        memory.read_slice(&mut bytes, GuestAddress(loaded.entry)).unwrap();
        assert_eq!(bytes, file);
        let mut bytes = [0; 5];
        memory.read_slice(&mut bytes, GuestAddress(initrd.start)).unwrap();
        assert_eq!(&bytes, b"files");
        // An offset of 0 leaves the device tree alone.
        let file = image(0, 0x1000, 0);
        let kernel = Kernel::read(&file, RAM).unwrap();
        let loaded = kernel.load(&memory, RAM, None).unwrap();
        assert_eq!(loaded, Loaded { entry: RAM_START + (2 << 20), initrd: None });
    }

    #[test]
    fn what_does_not_fit_the_memory_is_refused_and_says_how_much_it_takes() {
        let memory = crate::memory::create(RAM).unwrap();
        let load = |image_size, initrd: &[u8]| {
            let file = image(0, image_size, 0);
            let kernel = Kernel::read(&file, RAM).unwrap();
            kernel.load(&memory, RAM, Some(initrd)).map_err(|error| error.to_string())
        };
        let room = RAM - (2 << 20);
        load(room, &[]).unwrap();
        load(room - 0x1_0000, &[1; 0x1_0000]).unwrap();
        let error = load(room, &[1]).unwrap_err();
        assert!(error.contains("take 17 MiB") && error.contains("--memory"), "{error}");
        assert!(load(room - 0x1_0000, &[1; 0x1_0001]).is_err());
        for hostile in [u64::MAX, u64::MAX - LOAD_MIN, u64::MAX - LOAD_MIN - 0xffff] {
            assert!(load(hostile, &[1]).is_err());
        }
        let file = image(u64::MAX, 1, 0);
        let kernel = Kernel::read(&file, RAM).unwrap();
        assert!(kernel.load(&memory, RAM, None).is_err());
    }

    #[test]
    fn a_small_file_cannot_fill_the_hosts_memory() {
        let mut large = image(0, 0x1000, 0);
        large.resize(1 << 20, 0);
        for pack in [gzip, zstd] {
            assert!(Kernel::read(&pack(&large), 1 << 20).is_ok());
            let larger = pack(&[&large[..], &[0]].concat());
            let error = Kernel::read(&larger, 1 << 20).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains("larger than the guest's memory of 1 MiB"), "{error}");
        }
    }

    #[test]
    fn a_wrong_kernel_is_told_from_a_damaged_one() {
        let mut bzimage = vec![0; 0x300];
        bzimage[..2].copy_from_slice(b"MZ");
        bzimage[0x202..0x206].copy_from_slice(b"HdrS");
        let good = image(0, 0x1000, 0);
        let packed = gzip(&[&good[..], &[7; 1000]].concat());
        for (file, part) in [
            (b"".to_vec(), "no Linux kernel"),
            (b"#!/bin/sh\n".to_vec(), "no Linux kernel"),
            (good[..63].to_vec(), "no Linux kernel"),
            (bzimage, "a kernel for x86"),
            (b"\x7fELF\x02\x01\x01".to_vec(), "without --kernel"),
            (b"\xfd7zXZ\0...".to_vec(), "compressed with xz"),
            (gzip(&packed), "gzip, twice"),
            (gzip(b"text"), "no Linux kernel"),
            (packed[..packed.len() - 20].to_vec(), "damaged or cut off"),
            (ZSTD.to_vec(), "cannot be decompressed"),
            (zstd(&good)[..30].to_vec(), "damaged or cut off"),
            (zboot("lzma", b"\x5d\0\0"), "'lzma'; gzip and zstd"),
            (zboot("gzip", b"text"), "payload"),
            (zboot("gzip", &packed)[..0x110].to_vec(), "cut off"),
            (b"MZ\0\0zimg".to_vec(), "cut off"),
            (image(0, 0, 0), "3.17"),
        ] {
            let error = error(&file);
            assert!(error.contains(part), "{error}");
        }
    }
}
