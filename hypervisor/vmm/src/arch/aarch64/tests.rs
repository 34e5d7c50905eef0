//! Machines on this host's KVM: what only an arm64 guest sees.

use pvmsi_hypervisor::Policy;
use pvmsi_protocol::{ServiceBlock, SmcccStatus};
use vm_memory::{Bytes, GuestAddress};

use super::programs::{TEST_PAGE, code, image};
use super::*;
use crate::config::{MachineConfig, Program};
use crate::control::End;
use crate::machine::Machine;
use crate::test_guest::run;

#[allow(clippy::arithmetic_side_effects)]
fn found<const N: usize>(machine: &Machine, offset: u64) -> [u64; N] {
    let mut bytes = vec![0; 8 * N];
    machine.memory().read_slice(&mut bytes, GuestAddress(TEST_PAGE + offset)).unwrap();
    let words = bytes.as_chunks().0;
    std::array::from_fn(|n| u64::from_le_bytes(words[n]))
}

#[test]
fn the_boot_processor_gets_the_device_tree_and_starts_others_by_psci() {
    let code = code(&[
        0xd2a8_0029, // mov x9, #0x40010000
        0xf900_0120, // str x0, [x9]
        0x52b8_8000, // mov w0, #0xc4000000
        0x7280_0060, // movk w0, #0x3
        0xd280_0021, // mov x1, #0x1
        0x1000_0122, // adr x2, .+36
        0xd280_0aa3, // mov x3, #0x55
        0xd400_0002, // hvc #0x0
        0xf900_0920, // str x0, [x9, #16]
        0xf940_0521, // ldr x1, [x9, #8]
        0xb4ff_ffe1, // cbz x1, .-4
        0xd2a1_4020, // mov x0, #0xa010000
        0xb900_041f, // str wzr, [x0, #4]
        0x1400_0000, // b .
        0xd2a8_0029, // mov x9, #0x40010000
        0xf900_0520, // str x0, [x9, #8]
        0x1400_0000, // b .
    ]);
    let Some((machine, end)) = run(&code, |config| config.cpus = 2) else { return };
    assert_eq!(end, End::Exited(0));
    assert_eq!(found(&machine, 0), [RAM_START, 0x55, 0], "X0 of both, CPU_ON's answer");
    let magic: u32 = machine.memory().read_obj(GuestAddress(RAM_START)).unwrap();
    assert_eq!(magic.swap_bytes(), 0xd00d_feed);
}

#[test]
fn a_linux_kernel_starts_as_the_protocol_of_booting_wants_it() {
    let code = code(&[
        0xd2a8_0029, // mov x9, #0x40010000
        0xa900_0520, // stp x0, x1, [x9]
        0xa901_0d22, // stp x2, x3, [x9, #16]
        0x1000_0001, // adr x1, .
        0xf900_1121, // str x1, [x9, #32]
        0xd538_4241, // mrs x1, currentel
        0xf900_1521, // str x1, [x9, #40]
        0xd53b_4221, // mrs x1, daif
        0xf900_1921, // str x1, [x9, #48]
        0xd538_1001, // mrs x1, sctlr_el1
        0xf900_1d21, // str x1, [x9, #56]
        0x52b0_8000, // mov w0, #0x84000000
        0x7280_0100, // movk w0, #0x8
        0xd400_0002, // hvc #0x0
        0x1400_0000, // b .
    ]);
    let kernel = image([0, 0x1000, 0], &code);
    let change = |config: &mut MachineConfig| {
        config.program = Program::Linux { kernel, initrd: Some(b"files".to_vec()) };
    };
    let Some((machine, end)) = run(&[], change) else { return };
    assert_eq!(end, End::Exited(0));
    let [x0, x1, x2, x3, pc, exception_level, interrupts, control] = found(&machine, 0);
    assert_eq!([x0, x1, x2, x3], [RAM_START, 0, 0, 0]);
    assert_eq!(pc, LOAD_MIN + 64 + 12);
    assert_eq!((exception_level, interrupts), (1 << 2, 0xf << 6));
    assert_eq!(control & 0b101, 0, "MMU and data cache off");
    let mut initrd = [0; 5];
    machine.memory().read_slice(&mut initrd, GuestAddress(LOAD_MIN + 0x1_0000)).unwrap();
    assert_eq!(&initrd, b"files");
}

#[test]
fn psci_off_ends_the_run_well() {
    let code = code(&[
        0x52b0_8000, // mov w0, #0x84000000
        0x7280_0100, // movk w0, #0x8
        0xd400_0002, // hvc #0x0
        0x1400_0000, // b .
    ]);
    let Some((machine, end)) = run(&code, |config| config.cpus = 2) else { return };
    assert_eq!(end, End::Exited(0));
    assert!(machine.report().passed());
}

#[test]
fn smccc_calls_by_hvc_and_smc_find_the_service_and_ring_it() {
    // Discovery of leaf 0 by HVC and by SMC; a call that nobody knows; a doorbell without a buffer.
    let code = code(&[
        0xd2a8_0029, // mov x9, #0x40010000
        0x52b8_c000, // mov w0, #0xc6000000
        0x728a_ca00, // movk w0, #0x5650
        0xd280_0001, // mov x1, #0x0
        0xd400_0002, // hvc #0x0
        0xa900_0520, // stp x0, x1, [x9]
        0x52b8_c000, // mov w0, #0xc6000000
        0x728a_ca00, // movk w0, #0x5650
        0xd280_0001, // mov x1, #0x0
        0xd400_0003, // smc #0x0
        0xa901_0520, // stp x0, x1, [x9, #16]
        0x52b8_c000, // mov w0, #0xc6000000
        0x728a_ca40, // movk w0, #0x5652
        0xd400_0002, // hvc #0x0
        0xf900_1120, // str x0, [x9, #32]
        0x52b8_c000, // mov w0, #0xc6000000
        0x728a_ca20, // movk w0, #0x5651
        0xd280_02c1, // mov x1, #0x16
        0xd400_0002, // hvc #0x0
        0xf900_1520, // str x0, [x9, #40]
        0xd2a1_4020, // mov x0, #0xa010000
        0xb900_041f, // str wzr, [x0, #4]
        0x1400_0000, // b .
    ]);
    let Some((machine, end)) = run(&code, |_| {}) else { return };
    assert_eq!(end, End::Exited(0));
    let service = machine.service();
    let offer: ServiceBlock = service.offer(None, None).unwrap();
    let [status, low, _, _] = offer.smccc_answer(0);
    let [not_supported, invalid] =
        [SmcccStatus::NOT_SUPPORTED, SmcccStatus::INVALID_PARAMETER].map(|status| status.0);
    assert_eq!(found(&machine, 0), [status, low, status, low, not_supported, invalid]);
    assert_eq!((machine.exits().doorbell, machine.exits().total()), (1, 4));
}

#[test]
fn without_the_service_its_calls_are_not_supported() {
    let code = code(&[
        0xd2a8_0029, // mov x9, #0x40010000
        0x52b8_c000, // mov w0, #0xc6000000
        0x728a_ca00, // movk w0, #0x5650
        0xd400_0002, // hvc #0x0
        0xf900_0120, // str x0, [x9]
        0xd2a1_4020, // mov x0, #0xa010000
        0xb900_041f, // str wzr, [x0, #4]
        0x1400_0000, // b .
    ]);
    let Some((machine, end)) = run(&code, |config| config.policy = Policy::Off) else { return };
    assert_eq!(end, End::Exited(0));
    assert_eq!(found(&machine, 0), [SmcccStatus::NOT_SUPPORTED.0]);
    assert_eq!(machine.exits().total(), 1, "KVM answers it");
}

#[test]
fn a_reset_brings_the_interrupt_controller_back() {
    // On each start: stores registers of distributor, redistributor, translation service and CPU
    // interface. On the first one: changes them all, and resets the machine.
    let code = code(&[
        0xd2a8_0029, // mov x9, #0x40010000
        0xd2a1_0008, // mov x8, #0x8000000
        0xd2a1_0147, // mov x7, #0x80a0000
        0xd2a1_0106, // mov x6, #0x8080000
        0xb940_012a, // ldr w10, [x9]
        0x1100_054a, // add w10, w10, #0x1
        0xb900_012a, // str w10, [x9]
        0x8b0a_192b, // add x11, x9, x10, lsl #6
        0xb940_0101, // ldr w1, [x8]
        0xb900_0961, // str w1, [x11, #8]
        0xb941_0501, // ldr w1, [x8, #260]
        0xb900_0d61, // str w1, [x11, #12]
        0xb942_0501, // ldr w1, [x8, #516]
        0xb900_1161, // str w1, [x11, #16]
        0xb940_00e1, // ldr w1, [x7]
        0xb900_1561, // str w1, [x11, #20]
        0xb940_70e1, // ldr w1, [x7, #112]
        0xb900_1961, // str w1, [x11, #24]
        0xb940_00c1, // ldr w1, [x6]
        0xb900_1d61, // str w1, [x11, #28]
        0xd538_4601, // mrs x1, icc_pmr_el1
        0xb900_2161, // str w1, [x11, #32]
        0xd538_cce1, // mrs x1, icc_igrpen1_el1
        0xb900_2561, // str w1, [x11, #36]
        0x7100_095f, // cmp w10, #0x2
        0x5400_02e0, // b.eq .+92
        0x5280_0041, // mov w1, #0x2
        0xb900_0101, // str w1, [x8]
        0x5280_0021, // mov w1, #0x1
        0xb901_0501, // str w1, [x8, #260]
        0xb902_0501, // str w1, [x8, #516]
        0xd2a8_2001, // mov x1, #0x41000000
        0xb240_0c21, // orr x1, x1, #0xf
        0xf900_38e1, // str x1, [x7, #112]
        0xd2a8_2021, // mov x1, #0x41010000
        0xf900_3ce1, // str x1, [x7, #120]
        0x5280_0021, // mov w1, #0x1
        0xb900_00e1, // str w1, [x7]
        0xb900_00c1, // str w1, [x6]
        0xd280_1e01, // mov x1, #0xf0
        0xd518_4601, // msr icc_pmr_el1, x1
        0xd280_0021, // mov x1, #0x1
        0xd518_cce1, // msr icc_igrpen1_el1, x1
        0xd503_3fdf, // isb
        0x52b0_8000, // mov w0, #0x84000000
        0x7280_0120, // movk w0, #0x9
        0xd400_0002, // hvc #0x0
        0x1400_0000, // b .
        0xd2a1_4020, // mov x0, #0xa010000
        0xb900_041f, // str wzr, [x0, #4]
        0x1400_0000, // b .
    ]);
    let Some((machine, end)) = run(&code, |config| config.memory_bytes = 32 << 20) else { return };
    assert_eq!(end, End::Exited(0));
    assert_eq!(machine.resets(), 1);
    let first: [u64; 4] = found(&machine, 0x48);
    assert_eq!(found(&machine, 0x88), first);
    let distributor_control = first[0] & 0xffff_ffff;
    assert_eq!(distributor_control & 3, 0, "groups off at power-on: {first:x?}");
}
