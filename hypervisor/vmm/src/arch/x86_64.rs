//! What is particular to the x86_64 machine: how its vCPUs start, what CPUID shows, its interrupt controllers.

pub(crate) mod boot;
pub(crate) mod cpuid;
pub(crate) mod irqchip;
pub(crate) mod registers;
