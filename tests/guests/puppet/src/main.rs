//! A guest whose vCPUs do what a host-side test tells them, one command at a time.
//!
//! The host and the guest share the page at 0x8000. All fields are little
//! endian and aligned. Slot n (256 bytes) is at n + 1 times 256; the header
//! takes the place before slot 0.
//!
//! | header | size | field |
//! |---|---|---|
//! | 0 | 4 | magic, the bytes `PUPT`, once the guest has written the rest |
//! | 4 | 4 | number of slots |
//! | 8 | 8 | guest physical address of the interrupt counters: 256 32-bit words for each slot |
//!
//! | slot | size | field |
//! |---|---|---|
//! | 0 | 4 | sequence: the host changes it when a command is complete |
//! | 4 | 4 | done: the guest copies the sequence when the command is done |
//! | 8 | 4 | opcode |
//! | 12 | 4 | 1 when the vCPU takes commands |
//! | 16 | 32 | four 64-bit arguments |
//! | 48 | 32 | four 64-bit results |
//! | 80 | 4 | stop: the host ends a loop by a value other than 0 |
//! | 84 | 4 | rounds of the loop that is running |
//!
//! | opcode | arguments | results |
//! |---|---|---|
//! | 1 load | address, width in bytes | value |
//! | 2 store | address, width, value | |
//! | 3 port in | port, width | value |
//! | 4 port out | port, width, value | |
//! | 5 CPUID | leaf, subleaf | EAX, EBX, ECX, EDX |
//! | 6 clear the interrupt counters | | |
//! | 7 HLT until an interrupt | | |
//! | 8 fixed interrupt | APIC id, vector | |
//! | 9 interrupts on | | |
//! | 10 interrupts off | | |
//! | 11 store again and again | address, width, value, times | |
//! | 12 write 1 and 0 in turn (mask, unmask), reading back, until stopped | address of a vector control | rounds |
//!
//! An unknown opcode, or a width that is not 1, 2, 4 (or 8, of memory), gives
//! all ones as the first result.
#![no_std]
#![no_main]

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering, fence};

use pvmsi_guest_runtime::mmio::Register;
use pvmsi_guest_runtime::{Start, entry, interrupts, park, vcpu};
use x86_64::instructions::port::Port;

const PAGE: usize = 0x8000;
const SLOT_BYTES: usize = 256;
const SLOTS: usize = 15;
const MAGIC: u32 = u32::from_le_bytes(*b"PUPT");

type Counters = [[AtomicU32; 256]; SLOTS];
static COUNTERS: Counters = [const { [const { AtomicU32::new(0) }; 256] }; SLOTS];

entry!(main);

fn main(_: &Start, index: usize) -> ! {
    if index >= SLOTS {
        park();
    }
    if index == 0 {
        interrupts::set_handler(count);
        word64(PAGE | 8).write((&raw const COUNTERS).expose_provenance() as u64);
        word(PAGE | 4).write(u32::try_from(SLOTS).unwrap_or(0));
        fence(Ordering::SeqCst);
        word(PAGE).write(MAGIC);
    }
    Slot::new(index).serve()
}

fn count(vector: u8) {
    if let Some(counter) =
        COUNTERS.get(vcpu::index()).and_then(|counters| counters.get(usize::from(vector)))
    {
        // Only this vCPU writes it, with interrupts off.
        let next = counter.load(Ordering::Relaxed).wrapping_add(1);
        counter.store(next, Ordering::Release);
    }
}

/// A vCPU's part of the page.
struct Slot {
    base: usize,
    index: usize,
}

impl Slot {
    fn new(index: usize) -> Self {
        Self {
            base: PAGE.saturating_add(index.saturating_add(1).saturating_mul(SLOT_BYTES)),
            index,
        }
    }

    fn serve(&self) -> ! {
        let sequence = word(self.base);
        let mut last = sequence.read();
        word(self.base | 4).write(last);
        word(self.base | 12).write(1);
        loop {
            let next = sequence.read();
            if next == last {
                core::hint::spin_loop();
                continue;
            }
            last = next;
            fence(Ordering::SeqCst);
            let results = self.execute();
            for (offset, result) in [48, 56, 64, 72].into_iter().zip(results) {
                word64(self.base | offset).write(result);
            }
            fence(Ordering::SeqCst);
            word(self.base | 4).write(last);
        }
    }

    fn execute(&self) -> [u64; 4] {
        let [a, b, c, d] = [16, 24, 32, 40].map(|offset| word64(self.base | offset).read());
        let address = usize::try_from(a).unwrap_or(0);
        let [port0, port1, ..] = a.to_le_bytes();
        let port = u16::from_le_bytes([port0, port1]);
        let [low, ..] = b.to_le_bytes();
        let mut results = [0; 4];
        let [first, ..] = &mut results;
        match word(self.base | 8).read() {
            1 => *first = load(address, b),
            2 => *first = store(address, b, c),
            3 => *first = port_in(port, b),
            4 => *first = port_out(port, b, c),
            5 => results = cpuid(a, b),
            6 => {
                for counter in COUNTERS.get(self.index).into_iter().flatten() {
                    counter.store(0, Ordering::Relaxed);
                }
            }
            7 => {
                let were_on = interrupts::are_enabled();
                interrupts::enable_and_sleep();
                if !were_on {
                    interrupts::disable();
                }
            }
            8 => interrupts::send(address, low),
            9 => interrupts::enable(),
            10 => interrupts::disable(),
            11 => {
                for _ in 0..d {
                    *first = store(address, b, c);
                }
            }
            12 => *first = self.mask_loop(address),
            _ => *first = u64::MAX,
        }
        results
    }

    fn mask_loop(&self, address: usize) -> u64 {
        let control = word(address);
        let stop = word(self.base | 80);
        let rounds = word(self.base | 84);
        let mut done = 0u32;
        while stop.read() == 0 {
            for masked in [1, 0] {
                control.write(masked);
                control.read();
            }
            done = done.wrapping_add(1);
            rounds.write(done);
        }
        done.into()
    }
}

fn word(address: usize) -> Register<u32> {
    // SAFETY: the mailbox, or the vector control that the test names; nothing that Rust code refers to.
    unsafe { Register::at(address) }
}

fn word64(address: usize) -> Register<u64> {
    // SAFETY: as in `word`.
    unsafe { Register::at(address) }
}

// One instruction each, at any alignment: tests want accesses that Rust's own would not be allowed to make.
fn load(address: usize, width: u64) -> u64 {
    let value: u64;
    macro_rules! load {
        ($instruction:literal) => {
            // SAFETY: the test says that this address may be read.
            unsafe {
                asm!($instruction, address = in(reg) address, value = out(reg) value, options(nostack, preserves_flags));
            }
        };
    }
    match width {
        1 => load!("movzx {value:e}, byte ptr [{address}]"),
        2 => load!("movzx {value:e}, word ptr [{address}]"),
        4 => load!("mov {value:e}, dword ptr [{address}]"),
        8 => load!("mov {value}, qword ptr [{address}]"),
        _ => value = u64::MAX,
    }
    value
}

fn store(address: usize, width: u64, value: u64) -> u64 {
    macro_rules! store {
        ($instruction:literal) => {
            // SAFETY: the test says that this address may be written.
            unsafe {
                asm!($instruction, address = in(reg) address, value = in(reg) value, options(nostack, preserves_flags));
            }
        };
    }
    match width {
        // AL, because only some registers have a byte.
        1 => {
            // SAFETY: as above.
            unsafe {
                asm!("mov byte ptr [{address}], al", address = in(reg) address, in("rax") value, options(nostack, preserves_flags));
            }
        }
        2 => store!("mov word ptr [{address}], {value:x}"),
        4 => store!("mov dword ptr [{address}], {value:e}"),
        8 => store!("mov qword ptr [{address}], {value}"),
        _ => return u64::MAX,
    }
    0
}

#[allow(clippy::multiple_unsafe_ops_per_block, reason = "one access, of one of three widths")]
fn port_in(port: u16, width: u64) -> u64 {
    // SAFETY: the test says that this port may be read.
    unsafe {
        match width {
            1 => Port::<u8>::new(port).read().into(),
            2 => Port::<u16>::new(port).read().into(),
            4 => Port::<u32>::new(port).read().into(),
            _ => u64::MAX,
        }
    }
}

#[allow(clippy::multiple_unsafe_ops_per_block, reason = "one access, of one of three widths")]
fn port_out(port: u16, width: u64, value: u64) -> u64 {
    let [b0, b1, b2, b3, ..] = value.to_le_bytes();
    // SAFETY: the test says that this port may be written.
    unsafe {
        match width {
            1 => Port::<u8>::new(port).write(b0),
            2 => Port::<u16>::new(port).write(u16::from_le_bytes([b0, b1])),
            4 => Port::<u32>::new(port).write(u32::from_le_bytes([b0, b1, b2, b3])),
            _ => return u64::MAX,
        }
    }
    0
}

fn cpuid(leaf: u64, subleaf: u64) -> [u64; 4] {
    let low = |value: u64| u32::try_from(value & u64::from(u32::MAX)).unwrap_or(0);
    #[allow(unused_unsafe, reason = "safe since Rust 1.94, unsafe before")]
    // SAFETY: every x86_64 processor has CPUID.
    let result = unsafe { core::arch::x86_64::__cpuid_count(low(leaf), low(subleaf)) };
    [result.eax.into(), result.ebx.into(), result.ecx.into(), result.edx.into()]
}
