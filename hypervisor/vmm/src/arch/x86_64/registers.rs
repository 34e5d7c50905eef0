//! The registers of a vCPU at the start, and in an error message.

use kvm_bindings::{
    KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED, Msrs, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events,
};
use kvm_ioctls::{Error, VcpuFd};

use super::boot::{BOOT_PARAMETERS, GDT, GDT_BARE_METAL, GDT_LINUX, PML4, START_INFO};
use super::saved;
use crate::error::MachineError;

const CR0_PROTECTION: u64 = 1;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const CR0_NUMERIC_ERROR: u64 = 1 << 5;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
const EFER_LONG_MODE_ENABLE: u64 = 1 << 8;
const EFER_LONG_MODE_ACTIVE: u64 = 1 << 10;
/// IA32_MTRR_DEF_TYPE: enabled, and what no other register names is write-back, as firmware leaves it.
const MTRR_DEFAULT: u32 = 0x2ff;
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;
/// The bit of RFLAGS that is always set.
const RFLAGS_RESERVED: u64 = 1 << 1;

/// How vCPUs start a program.
pub(crate) enum Start {
    /// All of them in 64-bit mode at this address.
    BareMetal {
        /// The first instruction.
        entry: u64,
    },
    /// The first one as Linux's 64-bit boot protocol says; the others wait for INIT and SIPI.
    Linux {
        /// The first instruction.
        entry: u64,
    },
    /// The first one as PVH says; the others wait for INIT and SIPI.
    Pvh {
        /// The first instruction.
        entry: u64,
    },
}

impl Start {
    /// Every processor can run a program that was loaded.
    ///
    /// # Errors
    /// None.
    pub(crate) fn check(&self, _vcpu: &VcpuFd) -> Result<(), MachineError> {
        Ok(())
    }
}

/// What a machine reset brings a vCPU back to.
pub(crate) struct PowerOnState {
    index: u8,
    /// As KVM made them.
    sregs: kvm_sregs,
    lapic: kvm_lapic_state,
    events: kvm_vcpu_events,
    /// What Linux leaves switched on, KVM's clock pages among it, would go on under the next kernel.
    msrs: Vec<kvm_msr_entry>,
}

impl PowerOnState {
    /// Reads it from a vCPU that has not run; these are the MSRs that belong to it.
    ///
    /// # Errors
    /// KVM's.
    pub(super) fn read(vcpu: &VcpuFd, index: u8, msrs: &[u32]) -> Result<Self, Error> {
        let sregs = vcpu.get_sregs()?;
        Ok(Self {
            index,
            sregs,
            lapic: vcpu.get_lapic()?,
            events: vcpu.get_vcpu_events()?,
            msrs: saved::read_msrs(vcpu, msrs)?,
        })
    }

    /// Brings the vCPU to the entry point, ready to run.
    ///
    /// # Errors
    /// KVM's.
    pub(crate) fn restore(&self, vcpu: &VcpuFd, start: &Start) -> Result<(), Error> {
        let boots = self.index == 0 || matches!(start, Start::BareMetal { .. });
        let mut sregs = self.sregs;
        let regs = match *start {
            Start::BareMetal { entry } => {
                enter_64bit_mode(&mut sregs, 0x08, size_of_val(&GDT_BARE_METAL));
                let rsi = u64::from(self.index);
                kvm_regs { rip: entry, rdi: START_INFO, rsi, ..Default::default() }
            }
            _ if !boots => kvm_regs::default(),
            Start::Linux { entry } => {
                enter_64bit_mode(&mut sregs, 0x10, size_of_val(&GDT_LINUX));
                kvm_regs { rip: entry, rsi: BOOT_PARAMETERS, ..Default::default() }
            }
            Start::Pvh { entry } => {
                enter_32bit_mode(&mut sregs);
                kvm_regs { rip: entry, rbx: START_INFO, ..Default::default() }
            }
        };
        vcpu.set_sregs(&sregs)?;
        vcpu.set_lapic(&self.lapic)?;
        vcpu.set_vcpu_events(&self.events)?;
        vcpu.set_regs(&kvm_regs { rflags: RFLAGS_RESERVED, ..regs })?;
        if !matches!(start, Start::BareMetal { .. }) {
            saved::write_changed_msrs(vcpu, &self.msrs)?;
            let memory_types =
                kvm_msr_entry { index: MTRR_DEFAULT, data: MTRR_WRITE_BACK, ..Default::default() };
            let msrs = Msrs::from_entries(&[memory_types]).map_err(|_| Error::new(libc::ENOMEM))?;
            vcpu.set_msrs(&msrs)?;
        }
        let mp_state = if boots { KVM_MP_STATE_RUNNABLE } else { KVM_MP_STATE_UNINITIALIZED };
        vcpu.set_mp_state(kvm_mp_state { mp_state })
    }
}

/// A segment from 0 to 4 GiB.
fn flat(type_: u8, selector: u16) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        s: 1,
        g: 1,
        ..Default::default()
    }
}

/// The segments of the GDT: code at this selector, data and task state behind it.
fn load_segments(sregs: &mut kvm_sregs, code: kvm_segment, gdt_bytes: usize) {
    let selector = code.selector;
    let data = kvm_segment { db: 1, ..flat(0x3, selector.saturating_add(8)) };
    sregs.cs = code;
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *segment = data;
    }
    sregs.tr = kvm_segment {
        base: 0,
        limit: 0x67,
        selector: selector.saturating_add(16),
        type_: 0xb,
        present: 1,
        ..Default::default()
    };
    sregs.ldt = kvm_segment { unusable: 1, ..Default::default() };
    sregs.gdt.base = GDT;
    sregs.gdt.limit = u16::try_from(gdt_bytes.saturating_sub(1)).unwrap_or(0);
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
}

/// Protected mode without paging. What the guest may use of the GDT is its own business.
fn enter_32bit_mode(sregs: &mut kvm_sregs) {
    load_segments(sregs, kvm_segment { db: 1, ..flat(0xb, 0x10) }, size_of_val(&GDT_LINUX));
    sregs.cr0 = CR0_PROTECTION | CR0_EXTENSION_TYPE;
    sregs.cr3 = 0;
    sregs.cr4 = 0;
    sregs.efer = 0;
}

/// 64-bit mode, the first 4 GiB mapped to themselves.
fn enter_64bit_mode(sregs: &mut kvm_sregs, selector: u16, gdt_bytes: usize) {
    load_segments(sregs, kvm_segment { l: 1, ..flat(0xb, selector) }, gdt_bytes);
    sregs.cr0 = CR0_PROTECTION | CR0_EXTENSION_TYPE | CR0_NUMERIC_ERROR | CR0_PAGING;
    sregs.cr3 = PML4;
    sregs.cr4 = CR4_PHYSICAL_ADDRESS_EXTENSION;
    sregs.efer = EFER_LONG_MODE_ENABLE | EFER_LONG_MODE_ACTIVE;
}

/// The registers that tell where a vCPU stands, in one line.
pub(crate) fn describe(vcpu: &VcpuFd) -> String {
    let general = vcpu.get_regs().map_or_else(
        |error| format!("registers unreadable ({error})"),
        |r| {
            format!(
                "rip {:#x} rsp {:#x} rflags {:#x} rax {:#x} rbx {:#x} rcx {:#x} rdx {:#x} rsi {:#x} rdi {:#x}",
                r.rip, r.rsp, r.rflags, r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi
            )
        },
    );
    let system = vcpu.get_sregs().map_or_else(
        |_| String::new(),
        |s| {
            format!(
                " cr0 {:#x} cr2 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x}",
                s.cr0, s.cr2, s.cr3, s.cr4, s.efer
            )
        },
    );
    general + &system
}
