//! What differs between the architectures, behind one interface. No other module asks which one it is built for.
//!
//! | item | what it is |
//! |---|---|
//! | `CPUS_MAX`, `RAM`, `RAM_MIN`, `LOAD_MIN`, `BAR_WINDOW`, `DOORBELL_REGISTER` | the machine in numbers |
//! | `ELF_MACHINE`, `GUEST_TARGET` | which guests it runs |
//! | `DOORBELLS`, `DOORBELL_HELP`, `doorbell_port` | how a guest can ring, the usual way first |
//! | `REQUIRED`, `KVM_REMEDY`, `IOMMU_REMEDY`, `REMAPPING` | what it needs of the host, and what to do where that is missing |
//! | `SERIAL_GSI`, `FIRST_MESSAGE_GSI` | the routes that are not messages |
//! | `InterruptController` | created before the vCPUs, finished after them, reset with the machine; says which messages it takes |
//! | `VcpuModel`, `PowerOnState` | what makes a vCPU, and what a reset brings it back to |
//! | `describe` | the registers that tell where a vCPU stands |
//! | `load_bare_metal`, `load_linux` | put a program into RAM, with what it is told of its machine |
//! | `Start` | how vCPUs start it |
//! | `PciConfig` | how the guest reaches configuration space |
//! | `device_read`, `device_write` | devices in memory |
//! | `run` | enters the guest and serves what comes out |

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
pub(crate) use aarch64::*;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::*;
