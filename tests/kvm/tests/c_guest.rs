//! A guest that is written in C and linked with the guest half works in every policy.

use std::time::Duration;

use pvmsi::{Doorbell, End, FunctionConfig, Machine, MachineConfig};
use pvmsi_hypervisor::Policy;
use pvmsi_kvm_tests::guest;

#[test]
fn it_takes_interrupts_with_the_service_and_without() {
    for (policy, world) in [
        (Policy::Off, "legacy, trapped"),
        (Policy::Trapped, "paravirtual, trapped"),
        (Policy::Direct, "paravirtual, direct"),
    ] {
        for doorbell in [Doorbell::Port, Doorbell::Mmio] {
            let mut config = MachineConfig::new(guest("pvmsi-c-guest"));
            config.functions.push(FunctionConfig::software(16));
            config.policy = policy;
            config.doorbell = doorbell;
            let machine = Machine::new(config).unwrap();
            machine.resume();
            let end = machine.wait(Some(Duration::from_secs(60)));
            let output = String::from_utf8_lossy(&machine.serial_output()).into_owned();
            assert_eq!(end, Some(End::Exited(0)), "{policy:?} {doorbell:?}: {output}");
            let expected = format!("8 vectors, {world}\n");
            assert!(output.contains(&expected), "{policy:?} {doorbell:?}: {output}");
        }
    }
}
