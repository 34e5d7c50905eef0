//! A guest that is not linked with the shim works as today, in every policy.

use std::time::Duration;

use pvmsi::{Doorbell, End, FunctionConfig, Machine, MachineConfig};
use pvmsi_hypervisor::Policy;
use pvmsi_kvm_tests::guest;

#[test]
fn it_takes_interrupts_through_the_standard_table() {
    for policy in [Policy::Off, Policy::Trapped, Policy::Direct] {
        for doorbell in [Doorbell::Port, Doorbell::Mmio] {
            let mut config = MachineConfig::new(guest("pvmsi-plain-guest"));
            config.functions.push(FunctionConfig::software(16));
            config.policy = policy;
            config.doorbell = doorbell;
            let machine = Machine::new(config).unwrap();
            machine.resume();
            let end = machine.wait(Some(Duration::from_secs(60)));
            let output = String::from_utf8_lossy(&machine.serial_output()).into_owned();
            assert_eq!(end, Some(End::Exited(0)), "{policy:?}: {output}");
        }
    }
}
