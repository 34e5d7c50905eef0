//! The registers of a vCPU at the start, and in an error message.

use kvm_bindings::{
    KVM_MP_STATE_RUNNABLE, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_segment, kvm_sregs,
    kvm_vcpu_events,
};
use kvm_ioctls::VcpuFd;

use super::boot::{GDT, GDT_ENTRIES, PML4, START_INFO};
use crate::error::MachineError;

const CR0_PROTECTION: u64 = 1;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const CR0_NUMERIC_ERROR: u64 = 1 << 5;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
const EFER_LONG_MODE_ENABLE: u64 = 1 << 8;
const EFER_LONG_MODE_ACTIVE: u64 = 1 << 10;
/// The bit of RFLAGS that is always set.
const RFLAGS_RESERVED: u64 = 1 << 1;

/// How vCPUs start a program.
pub(crate) enum Start {
    /// All of them in 64-bit mode at this address.
    BareMetal {
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
    sregs: kvm_sregs,
    lapic: kvm_lapic_state,
    events: kvm_vcpu_events,
}

impl PowerOnState {
    /// Reads it from a vCPU that has not run, and puts 64-bit mode into it.
    ///
    /// # Errors
    /// KVM's.
    pub(super) fn read(vcpu: &VcpuFd, index: u8) -> Result<Self, kvm_ioctls::Error> {
        let mut sregs = vcpu.get_sregs()?;
        enter_64bit_mode(&mut sregs);
        Ok(Self { index, sregs, lapic: vcpu.get_lapic()?, events: vcpu.get_vcpu_events()? })
    }

    /// Brings the vCPU to the entry point, ready to run.
    ///
    /// # Errors
    /// KVM's.
    pub(crate) fn restore(&self, vcpu: &VcpuFd, start: &Start) -> Result<(), kvm_ioctls::Error> {
        let Start::BareMetal { entry } = *start;
        vcpu.set_sregs(&self.sregs)?;
        vcpu.set_lapic(&self.lapic)?;
        vcpu.set_vcpu_events(&self.events)?;
        vcpu.set_regs(&kvm_regs {
            rip: entry,
            rflags: RFLAGS_RESERVED,
            rdi: START_INFO,
            rsi: u64::from(self.index),
            ..Default::default()
        })?;
        // Processors beside the first wait for INIT and SIPI otherwise.
        vcpu.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE })
    }
}

fn enter_64bit_mode(sregs: &mut kvm_sregs) {
    let flat = |type_: u8, selector: u16| kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    let code = kvm_segment { l: 1, ..flat(0xb, 0x08) };
    let data = kvm_segment { db: 1, ..flat(0x3, 0x10) };
    sregs.cs = code;
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *segment = data;
    }
    sregs.tr = kvm_segment {
        base: 0,
        limit: 0x67,
        selector: 0x18,
        type_: 0xb,
        present: 1,
        ..Default::default()
    };
    sregs.ldt = kvm_segment { unusable: 1, ..Default::default() };
    sregs.gdt.base = GDT;
    sregs.gdt.limit = u16::try_from(size_of_val(&GDT_ENTRIES).saturating_sub(1)).unwrap_or(0);
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
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
