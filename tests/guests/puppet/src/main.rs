//! A guest whose vCPUs do what a host-side test tells them, one command at a time.
//!
//! The host and the guest share the page at 0x8000 (x86_64) or 0x4001_0000 (arm64). All fields are little
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
//! | 7 interrupts on | | |
//! | 8 interrupts off | | |
//! | 9 store again and again | address, width, value, times | |
//! | 10 write 1 and 0 in turn (mask, unmask), reading back, until stopped | address of a vector control | rounds |
//! | 11 the same, and watch vCPU 0 while the vector is masked, until stopped; vCPU 0 has interrupts on | address of a vector control, address of SENDING of the vector, its interrupt number | rounds, interrupts that came while masked |
//! | 12 copy 64 bytes into a call buffer and ring, again and again | address of the bytes, of the buffer, of the doorbell's register, times | |
//!
//! An unknown opcode, one that the processor has nothing for (3, 4 and 5 on
//! arm64), or a width that is not 1, 2, 4 (or 8, of memory), gives all ones as
//! the first result.
#![no_std]
#![no_main]

#[cfg_attr(target_arch = "x86_64", path = "x86_64.rs")]
#[cfg_attr(target_arch = "aarch64", path = "aarch64.rs")]
mod arch;

use core::sync::atomic::{AtomicU32, Ordering, fence};

use pvmsi_guest_runtime::mmio::Register;
use pvmsi_guest_runtime::{Start, entry, interrupts, park, vcpu};

use arch::{PAGE, cpuid, load, port_in, port_out, store};

const SLOT_BYTES: usize = 256;
const SLOTS: usize = 15;
const MAGIC: u32 = u32::from_le_bytes(*b"PUPT");
/// Sent to vCPU 0 to learn that it has handled all device interrupts before it.
const SYNC: u8 = interrupts::FIRST_OWN;
/// What is copied into a call buffer: a header and a short body.
const CALL_BYTES: usize = 64;
/// Glances at nothing while a vector is masked and quiet.
const DWELL: u32 = 20;

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
            7 => interrupts::enable(),
            8 => interrupts::disable(),
            9 => {
                for _ in 0..d {
                    *first = store(address, b, c);
                }
            }
            10 => *first = self.mask_loop(address),
            11 => {
                let sending = usize::try_from(b).unwrap_or(0);
                let [number, ..] = c.to_le_bytes();
                let [rounds, came, ..] = &mut results;
                [*rounds, *came] = self.watched_mask_loop(address, sending, number);
            }
            12 => {
                let [buffer, doorbell] =
                    [b, c].map(|address| usize::try_from(address).unwrap_or(0));
                for _ in 0..d {
                    for offset in (0..CALL_BYTES).step_by(8) {
                        let value = load(address.wrapping_add(offset), 8);
                        store(buffer.wrapping_add(offset), 8, value);
                    }
                    store(doorbell, 4, b >> 12);
                }
            }
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

    /// What is handled between two round trips through vCPU 0, after the vector is masked and the device sends none of it, came while it was masked.
    fn watched_mask_loop(&self, address: usize, sending: usize, number: u8) -> [u64; 2] {
        let [control, sending] = [address, sending].map(word);
        let [stop, rounds] = [80, 84].map(|offset| word(self.base | offset));
        let (mut done, mut came) = (0u32, 0u32);
        while stop.read() == 0 {
            control.write(1);
            control.read();
            // The device looks at the mask bit after it has written SENDING, this the other way round.
            fence(Ordering::SeqCst);
            while sending.read() != 0 {
                core::hint::spin_loop();
            }
            synchronise();
            let quiet = taken_by_vcpu0(number);
            for _ in 0..DWELL {
                core::hint::spin_loop();
            }
            synchronise();
            came = came.wrapping_add(taken_by_vcpu0(number).wrapping_sub(quiet));
            control.write(0);
            control.read();
            done = done.wrapping_add(1);
            rounds.write(done);
        }
        [done.into(), came.into()]
    }
}

/// Returns when vCPU 0 has handled every device interrupt that it had pending: this one is below all of theirs.
fn synchronise() {
    let before = taken_by_vcpu0(SYNC);
    interrupts::send(0, SYNC);
    while taken_by_vcpu0(SYNC) == before {
        core::hint::spin_loop();
    }
}

fn taken_by_vcpu0(number: u8) -> u32 {
    let counter = COUNTERS.first().and_then(|counters| counters.get(usize::from(number)));
    counter.map_or(0, |counter| counter.load(Ordering::Acquire))
}

fn word(address: usize) -> Register<u32> {
    // SAFETY: the mailbox, or the vector control that the test names; nothing that Rust code refers to.
    unsafe { Register::at(address) }
}

fn word64(address: usize) -> Register<u64> {
    // SAFETY: as in `word`.
    unsafe { Register::at(address) }
}
