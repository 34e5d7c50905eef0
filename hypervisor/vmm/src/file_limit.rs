//! The limit of open files: every vector needs eventfds.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Backend;

/// Descriptors that a machine needs beside those of its vectors.
const BASE: u64 = 128;

/// Raises the soft limit to the hard one; returns what is in force then, `u64::MAX` for no limit.
pub fn raise() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if limit.current != limit.maximum && setrlimit(Resource::Nofile, raised).is_ok() {
        return limit.maximum.unwrap_or(u64::MAX);
    }
    limit.current.unwrap_or(u64::MAX)
}

/// The hard limit, to which the soft one can be raised.
pub(crate) fn hard() -> u64 {
    getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX)
}

/// Descriptors that a function takes: one for each vector, and in software another for the device's end.
pub(crate) fn needed_by(backend: Backend, vectors: u16) -> u64 {
    match backend {
        Backend::Software(_) => u64::from(vectors).saturating_mul(2),
        Backend::Vfio(_) => u64::from(vectors).saturating_add(4),
    }
}

/// What to say when `needed` descriptors do not fit into `limit`.
pub(crate) fn too_small(needed: u64, limit: u64) -> Option<String> {
    let needed = needed.saturating_add(BASE);
    (needed > limit).then(|| {
        format!(
            "the vectors of all functions need {needed} open files and the hard limit is {limit}; fewer vectors will be \
             granted, and guests that program the table themselves may get no interrupts. Raise it: ulimit -Hn {needed}, or LimitNOFILE= of the service"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use pvmsi_software::SoftwareOptions;

    #[test]
    fn the_message_says_how_many_are_needed() {
        let software = Backend::Software(SoftwareOptions::default());
        let needed = needed_by(software, 2048);
        assert_eq!(needed, 4096);
        assert!(too_small(needed, 1 << 20).is_none());
        assert!(too_small(needed, 4096).unwrap().contains("4224"));
    }
}
